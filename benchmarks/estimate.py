"""Compares the estimate of `raykd check --cluster` with the time that the command then takes, in a new output folder.

    python benchmarks/estimate.py jobs/digits.yaml [--quick]
    python benchmarks/estimate.py jobs/digits_sweep.yaml
    python benchmarks/estimate.py jobs/sst2_minilm.yaml --data SST2 --model MINILM 'data.train=train[2000:6096]'

Both are run as a user runs them, one after the other. The command is `sweep` if the job has a search section, otherwise
`distill`. The last line is one JSON object; ratio is estimate / actual.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raykd.config.load import load

_SAID = re.compile(r"estimate: (\d+) s \((\d+) to (\d+) s .*?\), ([\d.e-]+) (.PU)-hours; measured in (\d+) s")


def raykd(*command: str) -> tuple[str, float]:
    """Run raykd. Returns its output, and the seconds that it took."""
    since = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "raykd", *command], capture_output=True, text=True)
    seconds = time.monotonic() - since
    if done.returncode:
        raise SystemExit(f"raykd {' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the job's YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", help="data.source: a local folder or a hub's id")
    parser.add_argument("--model", help="of the teachers and the student: a local folder or a hub's id")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: to see that it runs")
    parser.add_argument("--output", help="a new folder that the command's runs stay in; default: they are removed")
    given = parser.parse_intermixed_args()  # overrides can follow options
    overrides = list(given.overrides)
    if given.data:
        overrides.append(f"data.source={given.data}")
    if given.model:
        overrides += [f"teachers.*.model={given.model}", f"student.model={given.model}"]
    if given.quick:
        overrides += ["training.steps=50", "training.eval_every=25", "student.seed=0"]
        overrides += ["search.trials=1", "search.seeds=1"] if "search" in load(given.config).model_fields_set else []
    command = "sweep" if "search" in load(given.config, overrides).model_fields_set else "distill"
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or temporary
        if any(Path(folder).glob("*")):
            raise SystemExit(f"--output = {folder}: there is something in it, and what is done already takes no time")
        overrides.append(f"output={folder}")
        said, checked = raykd("check", "--cluster", given.config, *overrides)
        print(said, flush=True)
        loads.append(os.getloadavg()[0])
        _, actual = raykd(command, given.config, *overrides)
        loads.append(os.getloadavg()[0])
        results = [json.loads(path.read_text()) for path in Path(folder).glob("store/trainings/*/result.json")]
        blocks = sum(path.stat().st_size for path in Path(folder).glob("store/logits/*/*.block"))
    found = _SAID.search(said)
    assert found is not None, said
    likely, least, most, hours, device, probed = found.groups()
    summary = {
        "job": Path(given.config).stem,
        "estimate_s": int(likely),
        "range_s": [int(least), int(most)],
        "actual_s": round(actual, 1),
        "ratio": round(int(likely) / actual, 3),
        f"estimate_{device}_hours": float(hours),
        "trainings_hours": round(sum(result["seconds"] for result in results) / 3600, 4),
        "block_bytes": blocks,
        "probe_s": int(probed),
        "check_s": round(checked, 1),
        "load": [round(load, 2) for load in loads],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
