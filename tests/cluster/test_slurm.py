"""slurm.sh: checked by bash and shellcheck, and run for once, with a real Ray of two nodes on this machine.

Slurm itself is played: `scontrol` and `srun` below do what the script needs of them, and what it calls raykd is
DRIVER, which waits for the nodes and then for the signal. What sbatch makes of the directives is not tried.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT, until

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
DIRECTIVES = {  # of sbatch's options
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "signal", "requeue", "no-kill"),
    *("open-mode", "output"),
}
SCONTROL = """
case "$1 $2" in
  "show hostnames") printf '%s\\n' node1 node2 ;;
  *) echo "scontrol $*" >> calls ;;
esac
"""
SQUEUE = """
echo "squeue $*" >> calls
echo "$STATE"
"""
SRUN = """
echo "srun $*" >> calls
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
DRIVER = """
import json, os, pathlib, signal, sys, time
with open("calls", "a") as calls:
    print("raykd", *sys.argv[1:], file=calls)
if "--resume" in sys.argv:
    sys.exit(2)  # as raykd does where no sweep has begun
import ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
while len(nodes := [node["Labels"]["pool"] for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.1)
pathlib.Path("nodes.tmp").write_text(json.dumps(sorted(nodes)))
pathlib.Path("nodes.tmp").rename("nodes.json")
signal.pause()
"""


def test_the_shell_takes_it():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    subprocess.run([Path(sys.executable).with_name("shellcheck"), "--severity=style", SCRIPT], check=True)


def test_directives():
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert found.keys() == DIRECTIVES
    assert found["signal"] == "B:TERM@120", "to the script alone, and in time for the last checkpoints"


def test_without_a_job_it_says_how(tmp_path):
    done = subprocess.run(["bash", SCRIPT, "sweep"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch ")


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a job's second start, in a folder with a virtual environment and Slurm's commands."""
    python = f"exec {sys.executable} "
    commands = {
        "python": f'if [[ "$1 $2" == "-m raykd" ]]; then shift 2; {python} driver.py "$@"; fi\n{python} "$@"',
        "ray": python + '-m ray.scripts.scripts "$@"',
        "scontrol": SCONTROL,
        "squeue": SQUEUE,
        "srun": SRUN,
    }
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "driver.py").write_text(DRIVER)
    job = {"SLURM_JOB_ID": str(10**6 + os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": "1"}
    own = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "1", "TEACHER_NODES": "1"}
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | job | own


def test_a_job_that_is_cancelled_is_not_queued_again(slurm, tmp_path):
    """`scancel` sends the same signal as Slurm does before the time is up. Here Ray itself is played, too."""
    (tmp_path / ".venv" / "bin" / "ray").write_text('#!/bin/bash\n[ "$1" = health-check ] || exec sleep 1000\n')
    (tmp_path / "driver.py").write_text(
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "pathlib.Path('running').touch()\n"
        "signal.pause()\n"
    )
    script = subprocess.Popen(
        ["bash", SCRIPT, "distill", "job.yaml"], env=slurm | {"STATE": "COMPLETING"}, cwd=tmp_path
    )
    try:
        until(lambda: (tmp_path / "running").exists() or script.poll() is not None)
        script.send_signal(signal.SIGTERM)
        assert script.wait(LIMIT) == 143
    finally:
        script.kill()
    calls = (tmp_path / "calls").read_text()
    assert f"squeue --noheader --jobs={slurm['SLURM_JOB_ID']} --format=%T" in calls
    assert "requeue" not in calls
    until(lambda: not processes_of(slurm["SLURM_JOB_ID"]))


@pytest.mark.cluster
def test_from_start_to_requeue(slurm, tmp_path):
    slurm["STATE"] = "RUNNING"
    script = subprocess.Popen(["bash", SCRIPT, "sweep", "job.yaml", "search.trials=2"], env=slurm, cwd=tmp_path)
    try:
        until(lambda: (tmp_path / "nodes.json").exists() or script.poll() is not None)
        log = tmp_path / f"raykd-{slurm['SLURM_JOB_ID']}-nodes.log"
        assert script.poll() is None, log.exists() and log.read_text()
        assert json.loads((tmp_path / "nodes.json").read_text()) == ["students", "teachers"]
        script.send_signal(signal.SIGTERM)  # to the script alone, as Slurm's B: does
        assert script.wait(LIMIT) == 143
    finally:
        script.kill()
    calls = (tmp_path / "calls").read_text().splitlines()
    job, number = "raykd sweep job.yaml search.trials=2", slurm["SLURM_JOB_ID"]
    assert [call for call in calls if not call.startswith("srun")] == [
        f"{job} --resume",  # nothing was there to go on with
        job,
        f"squeue --noheader --jobs={number} --format=%T",
        f"scontrol requeue {number}",
    ]
    (started,) = [call for call in calls if call.startswith("srun")]
    assert "--nodelist=node2 ray start --address=" in started
    until(lambda: not processes_of(number))
    assert not Path(f"/tmp/raykd-job-{number}").exists()


def processes_of(job: str) -> list[str]:
    """The commands of all processes that the job has left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job}\0".encode() in (folder / "environ").read_bytes() + b"\0":
                found.append((folder / "cmdline").read_text())
        except OSError:  # it is gone, or none of ours
            continue
    return found
