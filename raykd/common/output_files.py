"""The names of the files and folders in `output` that several modules know.

output/
    mlflow.db, mlartifacts/         MLflow's, unless the user names another store
    EXPERIMENT/
        config.yaml, results.json
        report/report.html
    store/
        trainings/FINGERPRINT/      one folder for each training
            lock, events.jsonl, result.json
        data/FINGERPRINT/           rows, as they were read or encoded
            proof.json
        logits/
        checked/                    small results: see `remembered`
"""

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
CONFIG, RESULTS = "config.yaml", "results.json"
REPORT, PAGE = "report", "report.html"
STORE, TRAININGS, LOGITS, CHECKED = "store", "trainings", "logits", "checked"
LOCK = "lock"  # held by the process that trains
EVENTS = "events.jsonl"  # of a training, logged to MLflow again if its result is reused
RESULT = "result.json"  # written last, so it marks a finished training
PROOF = "proof.json"  # {"rows": N, "files": {name: {"bytes": size, "sha256": hex}}}; written last
