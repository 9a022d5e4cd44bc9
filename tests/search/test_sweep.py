"""Whole sweeps on real Ray Tune and real MLflow, at toy size; and trials in processes that are reused and killed."""

import ast
import dataclasses
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from processes import LIMIT, until
from ray.tune.execution.tune_controller import TuneController
from ray.util.placement_group import placement_group, remove_placement_group
from rich.console import Console
from tiny import reviews_job

from raykd.cluster import room
from raykd.cluster.flags import Flag
from raykd.cluster.local import LOCAL_RAY
from raykd.cluster.placement import remove_orphans
from raykd.cluster.resources import Resources
from raykd.cluster.room import NoRoom
from raykd.config.load import build, override
from raykd.config.schema import RayConfig
from raykd.config.search import SearchConfig
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.search import sweep
from raykd.search.concurrency import at_once
from raykd.search.journal import Trial
from raykd.search.schedule import PerArm
from raykd.search.trial_process import TrialProcess
from raykd.search.trial_spec import Outcome, TrialSpec
from raykd.search.tuner import TuneCallback, search
from raykd.training.access import Training
from raykd.training.events import Done, Evaluated, Event, Started, WaitingForResources
from raykd.training.processes import run_training


@pytest.mark.long
def test_a_sweep_stops_if_every_trial_fails_for_the_same_reason(ray_cluster, tmp_path):
    from raykd.common.errors import TrainingError

    tree = reviews_job(tmp_path, search={"trials": 4, "space": {"training.weight_decay": {"uniform": [0.0, 0.1]}}})
    tree["student"]["training"] = {"learning_rate": 1e30, "max_grad_norm": 1e30}
    with pytest.raises(
        TrainingError, match=r"every trial so far \(\d\) has failed for the same reason: .*the loss is nan"
    ):
        sweep.run(build(tree), Console(file=io.StringIO()))


class Trainings:
    """Jobs of one student with three seeds, made in this process, and what `search` tells of them."""

    def __init__(self, folder: Path, workers: int = 1, **training: Any) -> None:
        tree = override(reviews_job(folder), {"student.seed": [0, 1, 2], "student.workers": workers})
        tree["training"] |= {"steps": 12, "eval_every": 4, **training}
        self.config = build(tree)
        self.size, self.ray = Resources(workers, 1, 0), RayConfig()
        prepared = prepare(self.config)
        self.jobs = student_jobs(self.config, prepared, FINETUNE, ())
        self.results: dict[str, list[dict]] = {}
        self.ended: dict[str, str] = {}
        self.permanent: dict[str, bool] = {}
        self.pids: dict[str, set[int]] = {}
        self.stop = Flag(self.config.store, "stop", every=0.1)

    def spec(self, job: Job, arm: str = "a", never_prune: bool = False) -> TrialSpec:
        return TrialSpec(Trial(arm, job.seed, {}, job.seed), Training(job, self.size), "accuracy", never_prune)

    def run(self, specs: list[TrialSpec], scheduler: str = "none", most: int = 100) -> None:
        self.left = list(specs)
        search(
            self,
            SearchConfig(scheduler=scheduler, grace=0.3),
            self.ray,
            most,
            self.stop,
            lambda: False,
            self.config.folder,
        )

    def next_trial(self) -> TrialSpec | None:
        return self.left.pop(0) if self.left else None

    def on_result(self, spec: TrialSpec, events: Sequence[Event], result: dict[str, Any]) -> None:
        name = spec.training.job.name
        self.results.setdefault(name, []).append(dict(result))
        self.pids.setdefault(name, set()).update(e.pid for e in events if isinstance(e, Started))
        self.on_events(spec, events)

    def on_end(self, spec: TrialSpec, outcome: Outcome, reason: str, permanent: bool) -> None:
        self.permanent[spec.training.job.name] = permanent
        self.ended[spec.training.job.name] = f"{outcome}: {reason}" if reason else str(outcome)

    def teachers_work(self) -> bool:
        return False

    def on_events(self, one: TrialSpec, events: Sequence[Event]) -> None:
        pass


def history(job: Job) -> list[Any]:
    """Every number of the training, as it was logged."""
    lines = [json.loads(line) for line in (job.folder / "events.jsonl").read_text().splitlines() if line]
    numbers = [(e["event"], e.get("metrics"), e.get("history")) for e in lines]
    return json.loads(json.dumps(numbers))


@pytest.mark.slow
def test_a_reused_process_trains_bit_for_bit_like_a_fresh_one(ray_cluster, tmp_path):
    one = Trainings(tmp_path / "one")
    one.run([one.spec(job) for job in one.jobs], most=1)
    assert set(one.ended.values()) == {"finished"}
    assert len(set.union(*one.pids.values())) == 1, "one process has trained all three"
    other = Trainings(tmp_path / "other")
    last = other.jobs[-1]
    other.run([other.spec(last)])
    assert other.pids[last.name].isdisjoint(one.pids[last.name])
    assert history(last) == history(one.jobs[-1])
    assert len(history(last)) == 4  # 3 evaluations and the end


def test_evaluations_that_are_closer_than_logged_steps(ray_cluster, tmp_path, monkeypatch):
    """As in a long training: 20,000 steps are logged every 50, and may be evaluated every 5."""
    monkeypatch.setattr("raykd.training.metrics.LOGGED_STEPS", 1)
    made = Trainings(tmp_path)
    events = list(run_training(Training(made.jobs[0], made.size), RayConfig(), made.stop))
    assert [len(e.history) for e in events if isinstance(e, Evaluated)] == [0, 0, 1]
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_trials_without_room_end_with_an_error(ray_cluster, tmp_path, monkeypatch, caplog, workers):
    """Another command holds all but what a trial of several workers needs for itself: no trial after it is tried."""
    monkeypatch.setattr(room, "FIRST_SECONDS", 0.0)
    held = placement_group([{"CPU": 3.9}])
    assert held.wait(LIMIT)
    made = Trainings(tmp_path, workers)
    made.ray = RayConfig(timeout_s=3.0)
    said: list[str] = []
    made.on_events = lambda one, events: said.extend(e.text for e in events if isinstance(e, WaitingForResources))
    try:
        with caplog.at_level(logging.INFO, "raykd"), pytest.raises(NoRoom) as error:
            made.run([made.spec(job) for job in made.jobs], most=1)
    finally:
        remove_placement_group(held)
    text = str(error.value)
    assert all(part in text for part in (made.jobs[0].name, "student.num_cpus", "4 CPU", "ray.timeout_s = 3 s"))
    said += [record.getMessage() for record in caplog.records]
    assert any(made.jobs[0].name in line and "ray.timeout_s = 3 s" in line for line in said)
    assert "finished" not in made.ended.values()
    assert made.jobs[1].name not in made.ended
    until(lambda: remove_orphans() or ray.available_resources().get("CPU") == 4)


def test_a_trial_that_waits_in_vain_for_what_others_hold_does_not_end_the_search(tmp_path):
    made = Trainings(tmp_path, workers=2)
    callback = TuneCallback(made, room.RoomWait(1))
    callback.running = {name: made.spec(made.jobs[i]) for i, name in enumerate("ab")}

    def report(name: str, **result: Any) -> SimpleNamespace:
        trial = SimpleNamespace(trial_id=name, last_result=result, run_metadata=SimpleNamespace(num_failures=2))
        callback.on_trial_result(1, [], trial, result | {"events": []})
        return trial

    in_vain = {"score": 0.0, "outcome": Outcome.NO_ROOM, "reason": "no room for b"}
    report("a", waiting=True, placed=True)
    callback.on_trial_complete(2, [], report("b", **in_vain))
    assert callback.error is None
    assert made.ended == {made.jobs[1].name: "no room: no room for b"}
    callback.running["b"] = made.spec(made.jobs[1])
    report("a", waiting=True)  # it has lost its workers
    callback.on_trial_complete(3, [], report("b", **in_vain))
    assert isinstance(callback.error, NoRoom)
    assert made.ended == {made.jobs[1].name: "failed: no room for b"}


def test_the_time_that_mlflow_takes_is_no_wait_for_resources(tmp_path):
    """A trial ends, and its end takes longer to record than ray.timeout_s; the next one gets its resources after it."""
    made = Trainings(tmp_path)
    callback = TuneCallback(made, room.RoomWait(0.2))
    callback.running = {name: made.spec(made.jobs[i]) for i, name in enumerate("ab")}
    made.on_end = lambda *_: time.sleep(0.3)  # type: ignore[method-assign]
    last = {"outcome": Outcome.FINISHED, "reason": ""}
    callback.on_trial_complete(1, [], SimpleNamespace(trial_id="a", last_result=last))
    callback.on_step_begin(2, [SimpleNamespace(status="PENDING")])
    assert callback.error is None


@pytest.mark.slow
def test_a_killed_trial_resumes_in_another_process(ray_cluster, tmp_path):
    made = Trainings(tmp_path)
    killed = []

    def kill(one: TrialSpec, events: list[Event]) -> None:
        if not killed and any(isinstance(e, Evaluated) for e in events):
            killed.append(next(iter(made.pids[one.training.job.name])))
            os.kill(killed[0], signal.SIGKILL)

    made.on_events = kill  # type: ignore[method-assign]
    made.run([made.spec(made.jobs[0])])
    assert made.ended == {made.jobs[0].name: "finished"}
    assert len(made.pids[made.jobs[0].name]) == 2
    scores = [result["score"] for result in made.results[made.jobs[0].name]]
    assert scores == sorted(scores), "of the best checkpoint so far, also of one that was written before"
    whole = Trainings(tmp_path / "whole")
    whole.run([whole.spec(whole.jobs[0])])
    assert history(made.jobs[0])[-1] == history(whole.jobs[0])[-1], "to the same end"


FULL = """
import ray, sys
from pathlib import Path
from test_sweep import RayConfig, Trainings

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
made = Trainings(Path(sys.argv[1]), steps=10**6, eval_every=10**5)
made.ray = RayConfig(max_retries=1)
made.run([made.spec(made.jobs[0])])
ray.shutdown()
print(made.ended)
"""


@pytest.mark.slow
def test_a_trial_that_ray_ends_for_memory_is_retried_and_then_named(tmp_path):
    """Every machine uses more than 0.01% of its memory, so this Ray ends a process every five seconds."""
    memory = {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "5000"}
    environment = os.environ | LOCAL_RAY | memory | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    [reason] = ast.literal_eval(run.stdout.splitlines()[-1]).values()
    assert re.fullmatch(
        r"failed: student seed 0: its process died \(Ray ended it, because its node .* had used .*GB of .*GB; .*\)",
        reason,
    )


@pytest.mark.slow
def test_a_trial_whose_dead_process_fails_twice_at_once_is_tried_again(ray_cluster, tmp_path, monkeypatch):
    """Two of Tune's calls were under way when it was killed. Tune gives such a trial up at its first death."""
    failure = TuneController._trial_task_failure

    def twice(self: Any, trial: Any, exception: Exception) -> None:
        for _ in range(2):
            failure(self, trial, exception)

    monkeypatch.setattr(TuneController, "_trial_task_failure", twice)
    made, killed = Trainings(tmp_path), []

    def kill(one: TrialSpec, events: list[Event]) -> None:
        if not killed and any(isinstance(e, Evaluated) for e in events):
            killed.append(next(iter(made.pids[one.training.job.name])))
            os.kill(killed[0], signal.SIGKILL)

    made.on_events = kill  # type: ignore[method-assign]
    job = made.jobs[0]
    made.run([made.spec(job)])
    assert made.ended[job.name].startswith(f"died: {job.name}: its process died (")
    made.run([made.spec(job)])  # what a sweep does then
    assert made.ended == {job.name: "finished"}


class Broken(TrialProcess):
    """Its first training ends in a CUDA error, as far as anybody can tell."""

    def step(self) -> dict[str, Any]:
        marker = Path(self.spec.training.job.store) / "broken"
        if not marker.exists():
            marker.write_text(str(os.getpid()))
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().step()


@pytest.mark.slow
def test_after_a_cuda_error_the_process_is_replaced(ray_cluster, tmp_path, monkeypatch):
    import raykd.search.tuner as tuner

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(tuner, "TrialProcess", Broken)
    made = Trainings(tmp_path)
    made.run([made.spec(job) for job in made.jobs[:2]], most=1)
    assert set(made.ended.values()) == {"finished"}
    broken = int((Path(made.config.store) / "broken").read_text())
    assert broken not in set.union(*made.pids.values())


@pytest.mark.long
def test_trials_of_two_workers_do_not_deadlock(ray_cluster, tmp_path):
    """Four CPUs, three trials of two workers: two at a time, and all come to their end."""
    made = Trainings(tmp_path, workers=2, steps=4, eval_every=4)
    assert at_once(made.config, made.size, False) == 1, "a controller needs a little, too"
    made.run([made.spec(job) for job in made.jobs[:2]], most=1)
    assert made.ended == {job.name: "finished" for job in made.jobs[:2]}


@pytest.mark.slow
def test_schedulers_prune_only_within_a_method(ray_cluster, tmp_path):
    """Real trials: of one arm, the one with a learning rate of nearly 0 is stopped; a never_prune one is not."""
    made = Trainings(tmp_path, steps=30, eval_every=3, learning_rate=0.02)
    good, slow = made.jobs[0], dataclasses.replace(made.jobs[1], name="slow")
    slow = dataclasses.replace(slow, training=slow.training.model_copy(update={"learning_rate": 1e-12}))
    never_prune = dataclasses.replace(slow, name="never_prune", seed=5)
    alone = dataclasses.replace(slow, name="alone", seed=6)
    trials = [
        made.spec(good),
        made.spec(slow),
        made.spec(never_prune, never_prune=True),
        made.spec(alone, arm="b"),
    ]
    made.run(trials, scheduler="asha", most=1)
    assert made.ended == {good.name: "finished", "slow": "pruned", "never_prune": "finished", "alone": "finished"}
    assert len(made.results["slow"]) < len(made.results["never_prune"])


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_schedulers_compare_trials_within_an_arm(kind):
    """Ray's own schedulers: the fourth of an arm is worse than the three before it; so is the first of another arm."""
    scheduler = PerArm(SearchConfig(scheduler=kind, grace=0.2))
    # Tune's, with a trial that waits for its turn: no reason to pause another one.
    controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])

    class Row(SimpleNamespace):  # of Tune's trials table: a dict's key
        __hash__ = object.__hash__

    def trial(name: str, arm: str, never_prune: bool = False) -> Row:
        spec = TrialSpec(Trial(arm, 1, {}, 0), None, "accuracy", never_prune)  # type: ignore[arg-type]
        found = Row(trial_id=name, config={"spec": spec}, status="RUNNING")
        scheduler.on_trial_add(controller, found)
        return found

    def decides(found: Row, score: float) -> str:
        for progress in (20.0, 40.0, 60.0):
            result = {"score": score, "progress": progress, "done": False, "outcome": None}
            decision = scheduler.on_trial_result(controller, found, result)
            if decision == "STOP":
                return decision
        return decision

    for i in range(3):
        assert decides(trial(f"good {i}", "a"), 0.9) == "CONTINUE"
    assert decides(trial("other", "b"), 0.1) == "CONTINUE"
    assert decides(trial("annealing", "a", never_prune=True), 0.1) == "CONTINUE"
    assert decides(trial("bad", "a"), 0.1) == "STOP"


@pytest.mark.long
def test_an_extended_sweep_whose_best_setting_changes(ray_cluster, tmp_path):
    """Its runs on fresh seeds are new ones; those of the setting that was best before are told apart."""
    from mlflow import MlflowClient

    tree = reviews_job(tmp_path, search={"trials": 1, "seeds": 1, "concurrency": 2})  # each process takes its start
    tree["search"]["space"] = {"method.type": ["kd"], "training.learning_rate": {"grid": [1e-9, 0.005]}}
    tree["training"] |= {"steps": 150, "eval_every": 75}  # enough to learn with the second of them
    sweep.run(build(tree), Console(file=io.StringIO()))
    tree["search"]["trials"] = 2
    again = sweep.run(build(tree), Console(file=io.StringIO()), resume=True)

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("reviews").experiment_id], max_results=1000)
    rates: dict[str, set[str]] = {}
    for run in runs:
        rates.setdefault(run.data.tags["raykd.role"], set()).add(run.data.params["training.learning_rate"])
    assert rates["superseded"] == {"1e-09"}
    assert rates["student"] == rates["baseline"] == {"0.005"}
    assert rates["trial"] == {"1e-09", "0.005"}
    shown = {
        run.info.run_id for run in runs if run.data.tags["raykd.role"] in ("teacher", "ensemble", "student", "baseline")
    }
    assert {r.mlflow_run_id for r in again} == shown
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.long
def test_missing_logits_are_computed_while_the_trial_waits(ray_cluster, tmp_path, monkeypatch):
    """A block is deleted after precomputing: its trial stops, the teachers compute the block, and the trial resumes."""
    tree = reviews_job(tmp_path, search={"trials": 1, "seeds": 1, "concurrency": 2}, logits={"block_rows": 20})
    tree["teachers"] = tree["teachers"][:1]
    run_trials = sweep.run_trials

    def with_a_loss(work: Any, made: Any, kept: Any, pool: Any, *more: Any) -> Any:
        pool.wait()
        stored = TeacherLogits(LogitStore.of(work.config), made.teachers[0].key)
        next(Path(stored.files.where).glob("*.block")).unlink()
        return run_trials(work, made, kept, pool, *more)

    monkeypatch.setattr(sweep, "run_trials", with_a_loss)
    said = Console(file=io.StringIO(), width=200)
    scored = sweep.run(build(tree), said)
    assert "logits are missing at step" in said.file.getvalue()
    assert {r.details["group"] for r in scored if r.role == "student"} == {"label_smoothing", "kd"}
