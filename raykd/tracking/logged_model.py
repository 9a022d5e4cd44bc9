"""Logs a saved model to an MLflow run."""

import re
import tempfile
from pathlib import Path
from typing import Any

from raykd.predictions.pyfunc import write_description


def log_model(client: Any, run_id: str, experiment_id: str, step: int, folder: Path, name: str) -> str:
    """Log a saved Hugging Face folder as a model of a run, with a file that `mlflow.pyfunc` loads it by.

    step: the last one that the run has logged.

    Returns the model's id. `mlflow.transformers.log_model` needs a pipeline, and transformers 5 has none for question
    answering.
    """
    from mlflow.entities import LoggedModelOutput

    if not (folder / "config.json").is_file():  # MLflow would log an empty model if the folder did not exist
        raise FileNotFoundError(f"{folder} is not a saved model")
    name = re.sub(r"[/:.%\"']", "-", name)  # characters that MLflow refuses
    model = client.create_logged_model(experiment_id, name, run_id, model_type="transformers")
    try:
        client.log_model_artifacts(model.model_id, str(folder))
        with tempfile.TemporaryDirectory() as scratch:
            write_description(Path(scratch))
            client.log_model_artifacts(model.model_id, scratch)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return str(model.model_id)
