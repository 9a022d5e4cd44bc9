"""The training loop: driven by hand, in reused Ray processes, and by several Ray Train workers."""

import dataclasses
import itertools
import json
import logging
import os
import re
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import datasets
import lone_failure
import numpy as np
import pytest
import ray
import torch
from filelock import FileLock
from odd_teacher import broken_gpu
from processes import LIMIT, descendants, until
from ray.cloudpickle import register_pickle_by_value
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from scored import evaluate
from taught import curve, student, teach, weights
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ElectraForSequenceClassification

import raykd.training.trainer
from raykd.cluster import room
from raykd.cluster.flags import Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.resources import Resources
from raykd.cluster.running import cluster_gpus
from raykd.common import shared_files
from raykd.common.atomic import new_folder, write_atomically
from raykd.common.errors import ConfigError, DivergedError, TrainingError
from raykd.common.row_files import open_rows
from raykd.config.methods import Method
from raykd.config.schema import RayConfig
from raykd.logits import LogitStore
from raykd.models.inputs import InputRows
from raykd.models.prediction import Inference, predict_rows
from raykd.models.torch_compile import BACKEND
from raykd.tasks import make_task
from raykd.tasks.padding import pad_tokens
from raykd.teachers import live
from raykd.teachers.actor import TeacherActor
from raykd.teachers.live import TeacherClient, directory_here
from raykd.training import compiled, evaluation, loader
from raykd.training.access import Training
from raykd.training.events import (
    AlreadyTrained,
    Done,
    EndedEarly,
    Evaluated,
    Event,
    Failed,
    GenerationEnded,
    Locked,
    LogitsMissing,
    Placed,
    Restarted,
    Resumed,
    Started,
    Stopped,
    WorkersLost,
)
from raykd.training.job_lock import last_written
from raykd.training.launch import run_trainings
from raykd.training.loop import train
from raykd.training.processes import run_training
from raykd.training.teacher_logits import open_logits

KD = Method(type="kd", alpha=0.5, temperature=2.0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return teach(tmp_path_factory.mktemp("taught"))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_alpha_zero_is_fine_tuning_bit_for_bit(taught):
    plain = student(taught, Method(type="finetune"))
    nothing = student(taught, Method(type="kd", alpha=0.0))
    first = list(train(plain))
    state = weights(plain)
    shutil.rmtree(plain.folder)  # the same job: it would be found done
    second = list(train(nothing))
    assert curve(first) == curve(second)
    assert_same(state, weights(nothing))


def test_transfer_rows_teach_only_through_teachers(taught):
    assert len(student(taught, KD).train) == 2
    assert len(student(taught, Method(type="finetune")).train) == 1
    baseline, distilled = student(taught, Method(type="finetune")), student(taught, KD)
    assert baseline.steps == distilled.steps


def test_teachers_with_the_same_inputs_share_their_hashes(taught):
    """16 bytes a row and teacher, in every process that trains: with ten teachers of ten million rows 1.6 GB."""
    job = student(taught, KD)
    opened = open_logits(job, datasets.concatenate_datasets([e.open() for e in job.train]))
    assert opened is not None
    assert len(opened._hashes) == 2
    assert opened._hashes[0] is opened._hashes[1]


def test_accumulation_changes_nothing(taught):
    whole = curve(train(student(taught, KD, seed=1)))
    parts = curve(train(student(taught, KD, seed=1, training={"accumulation": 3})))
    np.testing.assert_allclose(parts, whole, rtol=2e-5)


def test_resumes_from_the_last_checkpoint(taught):
    """Stopped after its first evaluation and driven again: the same model, and no step is trained twice."""
    whole = student(taught, KD, seed=2)
    straight = list(train(whole))
    state = weights(whole)
    shutil.rmtree(whole.folder)
    events = train(whole)
    first = [next(event for event in events if isinstance(event, Evaluated))]
    assert first[0].step == 2
    events.close()
    rest = list(train(whole))
    assert rest[0] == Resumed(generation=1, step=2, steps=4)
    steps = [step for e in first + rest if isinstance(e, Evaluated) for step, _ in e.history]
    assert steps == [1, 2, 3, 4]
    assert curve(first + rest) == curve(straight)
    assert_same(state, weights(whole))


def test_asked_to_stop_it_leaves_a_checkpoint_of_that_step(taught):
    """Between two evaluations; then it goes on to the same model, with no gap in the loss curve."""
    whole = student(taught, KD, seed=7)
    straight = list(train(whole))
    state = weights(whole)
    shutil.rmtree(whole.folder)
    asked = iter([False] * 4 + [True])  # before three steps, and in the evaluation after the second
    first = list(train(whole, stop=lambda: next(asked)))
    assert first[-1] == Stopped(generation=1, step=3, steps=4, history=first[-1].history)
    assert not (whole.folder / "result.json").exists()
    rest = list(train(whole))
    assert rest[0].step == 3
    assert curve(first + rest) == curve(straight)
    assert_same(state, weights(whole))


DIVERGES = {"learning_rate": 1e30, "max_grad_norm": 1e30}


def test_loss_that_is_not_finite_stops_before_the_step(taught):
    job = student(taught, Method(type="finetune"), seed=3, training={**DIVERGES, "eval_every": None})
    with pytest.raises(TrainingError) as error:
        list(train(dataclasses.replace(job, steps=50)))
    text = str(error.value)
    assert "the loss is nan at step" in text or "the loss is inf at step" in text
    assert re.search(r"learning rate \d.*e\+\d+, rows \[\d+, ", text)
    assert "Lower student.training.learning_rate" in text


def test_model_that_has_diverged_is_not_scored(taught):
    job = student(taught, Method(type="finetune"), seed=3, training={**DIVERGES, "eval_every": 2})
    with pytest.raises(TrainingError, match=r"on validation the model answers .* Lower student.training.learning_rate"):
        list(train(job))


def test_a_diverged_born_again_leaves_no_logits(taught, monkeypatch):
    """It would diverge again: unlike one that was interrupted, it has nothing to resume from."""
    job = student(taught, Method(type="born_again", generations=2), seed=6)
    training, stop = Training(job, Resources(1, 1, 0)), Flag(job.store, "stop")
    usual = raykd.training.trainer.learning_rate
    events = run_training(training, RayConfig(), stop)
    while not isinstance(next(events), GenerationEnded):
        pass
    next(events)  # of the second generation, which learns from the first one's logits
    assert list((job.folder / "generations").rglob("*.block"))
    events.close()
    assert list((job.folder / "generations").rglob("*.block")), "an interrupted one resumes"
    monkeypatch.setattr("raykd.training.trainer.learning_rate", lambda *given: 1e30 * usual(*given))
    with pytest.raises(DivergedError):
        list(run_training(training, RayConfig(), stop))
    assert not list(job.folder.glob("generation*"))


def test_average_of_generations_is_scored_by_the_mean_of_their_logits(taught):
    job = student(taught, Method(type="born_again", generations=2, average_generations=True), seed=7)
    list(train(job))
    task, rows = make_task(job.task, job.label_names), job.test.encoded.open()
    logits = np.zeros((2, len(rows), 1, 2), np.float16)
    for generation in (0, 1):
        folder = job.folder / f"generation-{generation + 1}" / "model"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        processor = AutoTokenizer.from_pretrained(folder)
        inference = Inference([model], task, processor, torch.device("cpu"))
        logits[generation] = predict_rows(inference, InputRows(rows, task), np.arange(len(rows)))
    scored = evaluate(task, logits.astype(np.float32).mean(0), rows, open_rows(job.test.raw))
    assert job.result()["average"]["test"] == scored.metrics


def test_best_checkpoint_is_the_one_with_the_best_validation_score(taught):
    job = student(taught, Method(type="finetune"), seed=4, training={"select": "nll", "eval_every": 1})
    scores = [e.metrics["nll"] for e in train(job) if isinstance(e, Evaluated)]
    result = job.result()
    assert len(scores) == 4
    assert result["generations"][0]["validation"]["nll"] == pytest.approx(min(scores))


def test_gradient_checkpointing_changes_no_number(taught, monkeypatch):
    """Dropout included. Where the model cannot do it, the key is named."""
    config = {**taught[0].student.model.config, "hidden_dropout_prob": 0.1}
    jobs = []
    for checkpointing in (False, True):
        job = student(taught, KD, seed=23, training={"gradient_checkpointing": checkpointing})
        job = dataclasses.replace(job, model=job.model.model_copy(update={"config": config}))
        list(train(job))
        jobs.append(job)
    assert jobs[0].fingerprint != jobs[1].fingerprint
    assert_same(*map(weights, jobs))
    unable = dataclasses.replace(jobs[1], seed=24)
    monkeypatch.setattr(ElectraForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError) as error:
        list(train(unable))
    assert error.value.key == "training.gradient_checkpointing"


NO_GAIN = {"learning_rate": 1e-30, "eval_every": 1, "patience": 2}  # every score is the first one


def test_a_training_without_a_better_score_ends_early(taught):
    job = student(taught, KD, seed=21, steps=9, training=NO_GAIN)
    events = list(train(job))
    assert [e.step for e in events if isinstance(e, Evaluated)] == [1, 2, 3]
    assert EndedEarly(generation=1, step=3, steps=9) in events
    patient = student(taught, KD, seed=21, steps=3, training=NO_GAIN | {"patience": None})
    list(train(patient))
    assert_same(weights(job), weights(patient))


def test_patience_survives_a_stop(taught):
    """Stopped after its second evaluation, when one more without a better score is enough; and after the last one."""
    job = student(taught, Method(type="finetune"), seed=22, steps=9, training=NO_GAIN)
    for stop_after, steps in ((2, [1, 2]), (1, [3])):
        events = train(job)
        seen = list(itertools.islice((e for e in events if isinstance(e, Evaluated)), stop_after))
        events.close()
        assert [e.step for e in seen] == steps
    last = list(train(job))
    assert not [e for e in last if isinstance(e, Evaluated)]
    assert job.done


def predicted_splits(monkeypatch) -> list[str]:
    """The splits that are predicted from now on, in order."""
    splits, real = [], raykd.training.trainer.predict_split

    def noted(setup, split, *given):
        splits.append(split)
        return real(setup, split, *given)

    for user in (raykd.training.trainer, raykd.training.loop):
        monkeypatch.setattr(user, "predict_split", noted)
    return splits


def test_validation_is_predicted_once_an_evaluation(taught, monkeypatch):
    """The best checkpoint's logits are at hand at the end; they are what its weights give."""
    job = student(taught, KD, seed=11)
    predicted = predicted_splits(monkeypatch)
    straight = list(train(job))
    assert predicted == ["validation", "validation", "test"]
    result, state = job.result(), weights(job)
    shutil.rmtree(job.folder)
    stopped = train(job)
    next(event for event in stopped if isinstance(event, Evaluated) and event.step == 4)
    stopped.close()  # its process dies after the last evaluation
    predicted.clear()
    events = list(train(job))
    assert events[0].step == events[0].steps == straight[0].steps
    assert predicted == ["validation", "test"], "the best weights came from the disk"
    assert job.result()["generations"] == result["generations"]
    assert_same(state, weights(job))


def test_a_trial_knows_no_test_scores_until_it_is_a_student(taught, monkeypatch):
    """What is not kept predicts validation alone. With the same fingerprint, a student then trains and scores test."""
    job = student(taught, KD, seed=12)
    trial = dataclasses.replace(job, keep_model=False)
    predicted = predicted_splits(monkeypatch)
    settings, stop = RayConfig(), Flag(job.store, "stop")

    def kinds(job) -> list[type]:
        return [type(event) for event in run_training(Training(job, Resources(1, 1, 0)), settings, stop)]

    assert kinds(trial)[-1] is Done
    assert set(predicted) == {"validation"}
    (scores,) = trial.result()["generations"]
    assert set(scores) == {"validation"}
    assert not [path.name for path in job.folder.iterdir() if "test" in path.name]
    assert not list(job.folder.glob("generation-*/model"))
    assert trial.done
    assert not job.done, "nobody has scored it on test"

    assert kinds(job)[-1] is Done
    assert job.done
    assert trial.done
    (both,) = job.result()["generations"]
    assert set(both) == {"validation", "test"}
    assert both["validation"] == scores["validation"]
    assert kinds(job) == kinds(trial) == [Started, AlreadyTrained]


def test_a_born_again_trial_learns_from_its_first_generation(taught):
    """A trial saves no model, and gives what the student of the same job gives."""
    job = student(taught, Method(type="born_again", generations=2), seed=15)
    trial = dataclasses.replace(job, keep_model=False)
    list(train(trial))
    scores = trial.result()["generations"]
    assert len(scores) == 2
    shutil.rmtree(job.folder)
    list(train(job))
    assert [s["validation"] for s in job.result()["generations"]] == [s["validation"] for s in scores]


def test_a_model_without_test_scores_is_not_a_students_result(taught):
    """As a trial leaves it whose process dies before it drops its model."""
    job = student(taught, Method(type="finetune"), seed=13)
    list(train(job))
    path = job.folder / "result.json"
    result = json.loads(path.read_text())
    for scores in result["generations"]:
        del scores["test"]
    path.write_text(json.dumps(result))
    assert list(job.folder.glob("generation-*/model"))
    assert not job.done
    assert dataclasses.replace(job, keep_model=False).done


def test_every_evaluation_reports_the_throughput(taught):
    job = student(taught, KD, seed=14)
    throughput = [event.throughput for event in train(job) if isinstance(event, Evaluated)]
    assert [set(rates) for rates in throughput] == [{"rows_per_s", "tokens_per_s"}] * 2
    for rates in throughput:
        assert rates["tokens_per_s"] > rates["rows_per_s"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_equal_one(taught):
    """DDP over Ray Train: the same losses, with labels uneven between the workers (transfer rows have none)."""
    config = taught[0]
    one = student(taught, KD, seed=5)
    alone = curve(train(one))
    two = student(taught, KD, seed=5, training={"max_grad_norm": 1.0001})  # as good as 1.0, another fingerprint
    seen = []
    failed = run_trainings([Training(two, Resources(2, 1, 0))], config.ray, lambda _, event: seen.append(event))
    assert not failed
    together = curve(seen)
    assert len(together) == 4
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    ours, theirs = weights(one), weights(two)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_reused_process_trains_bit_for_bit_like_a_fresh_one(taught):
    config = taught[0]
    first = student(taught, KD, seed=6)
    second = student(taught, Method(type="weighted", W=0.2, alpha=0.9), seed=7)
    resources = Resources(1, 4, 0)  # one process for both
    seen: dict[str, list] = {first.fingerprint: [], second.fingerprint: []}
    assert not run_trainings(
        [Training(first, resources), Training(second, resources)],
        config.ray,
        lambda job, event: seen[job.fingerprint].append(event),
    )
    reused, curve_reused = weights(second), curve(seen[second.fingerprint])
    first_pid, second_pid = (seen[job.fingerprint][0].pid for job in (first, second))
    assert first_pid == second_pid
    os.kill(first_pid, signal.SIGKILL)  # idle by now
    shutil.rmtree(second.folder)
    fresh: list = []
    assert not run_trainings([Training(second, resources)], config.ray, lambda _, event: fresh.append(event))
    # Ray may offer it to the process that it does not know to be dead: then it is started again.
    assert [e.pid for e in fresh if isinstance(e, Started)][-1] != first_pid
    assert curve(fresh) == curve_reused
    assert_same(reused, weights(second))


@pytest.mark.usefixtures("ray_cluster")
def test_killed_process_resumes_from_its_checkpoint(taught):
    config = taught[0]
    job = student(taught, KD, seed=8, steps=40, training={"eval_every": 4})
    straight = curve(train(job))
    shutil.rmtree(job.folder)
    points: dict[int, tuple] = {}
    kinds, pids, killed = [], [], []

    def on_event(_, event):
        kinds.append(type(event))
        if isinstance(event, Started):
            pids.append(event.pid)
        if isinstance(event, Evaluated):
            for step, values in event.history:
                points.setdefault(step, (values["loss"], values["label"], values["distillation"]))
            if len(killed) == kinds.count(Restarted) < 2:
                killed.append(pids[-1])
                os.kill(pids[-1], signal.SIGKILL)

    settings = config.ray.model_copy(update={"max_retries": 1})  # deaths without an evaluation between them
    assert not run_trainings([Training(job, Resources(1, 1, 0))], settings, on_event)
    assert kinds.count(Restarted) == 2
    assert len(pids) == 3
    assert sorted(points) == list(range(1, 41))
    np.testing.assert_allclose([points[s] for s in sorted(points)], straight, rtol=1e-4)


@ray.remote(num_cpus=0)
class Controller:
    def reserve(self) -> PlacementGroup:
        group = placement_group([{"CPU": 1}])
        assert group.wait(60)
        return group


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_dead_controller_has_reserved_is_given_back():
    """By nobody else: its training's next try would wait for it. What others have reserved stays."""
    dead, alive = Controller.remote(), Controller.remote()
    lost, kept = ray.get([dead.reserve.remote(), alive.reserve.remote()])
    mine = placement_group([{"CPU": 1}])
    assert mine.wait(60)
    ray.kill(dead)

    def state(group: PlacementGroup) -> str:
        return placement_group_table(group)["state"]

    def is_given_back() -> bool:
        remove_orphans()
        return state(lost) == "REMOVED"

    assert state(lost) == "CREATED"
    until(is_given_back)
    assert [state(group) for group in (kept, mine)] == ["CREATED", "CREATED"]
    for group in (kept, mine):
        remove_placement_group(group)


@pytest.mark.usefixtures("ray_cluster")
def test_failure_is_reported_with_its_reason(taught):
    config = taught[0]
    assert cluster_gpus() == 0
    job = student(taught, Method(type="finetune"), seed=9, steps=50, training={**DIVERGES, "eval_every": None})
    seen = []
    failed = run_trainings([Training(job, Resources(1, 1, 0))], config.ray, lambda _, event: seen.append(event))
    assert "the loss is" in str(failed[job.fingerprint])
    assert isinstance(seen[-1], Failed)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("retries", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_whose_gpu_fails_is_tried_again(taught, tmp_path, retries):
    """A trial of a sweep: tests/search/test_sweep.py. A teacher: tests/test_pool.py."""
    register_pickle_by_value(lone_failure)  # the workers have no such module
    rows = lone_failure.NotAtFirst(np.arange(60), broken_gpu(), tmp_path / "failed")
    job = student(taught, KD, seed=30 + retries, row_subset=rows)
    seen: list[Event] = []
    settings = taught[0].ray.model_copy(update={"max_retries": retries})
    failed = run_trainings([Training(job, Resources(1, 1, 0))], settings, lambda _, event: seen.append(event))
    assert [e.reason for e in seen if isinstance(e, Restarted)] == retries * ["its GPU failed"]
    assert job.done == bool(retries)
    assert ("illegal memory access" in str(failed.get(job.fingerprint))) != job.done


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_same_job_of_two_commands_is_trained_once(taught):
    config = taught[0]
    job = student(taught, KD, seed=10)
    seen: list = []
    training = Training(job, Resources(1, 1, 0))
    assert not run_trainings([training, training], config.ray, lambda _, event: seen.append(type(event)))
    assert seen.count(Started) == 2
    assert seen.count(AlreadyTrained) == 1
    assert seen.count(Done) == 1


@pytest.mark.parametrize("system", ["nfs4", "ext4"])
def test_logits_that_a_shared_folder_still_hides_are_not_missing(taught, monkeypatch, system):
    """Another node has written them a moment ago. A local disk hides nothing: there they are missing at once."""
    job = student(taught, KD, seed=11)
    blocks = sorted((job.store / "logits").glob("*/*.block"))
    hidden = [block.rename(block.with_suffix(".hidden")) for block in blocks]
    monkeypatch.setattr(shared_files, "file_system", lambda path: system)

    def shown(seconds: float = 0.0) -> None:
        for block, at in zip(blocks, hidden, strict=True):
            if at.exists():
                at.rename(block)

    with monkeypatch.context() as looking:
        looking.setattr(shared_files.time, "sleep", shown)
        kinds = [type(event) for event in train(job)]
    shown()
    assert kinds[-1] is (Done if system == "nfs4" else LogitsMissing)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.long)])
def test_worker_that_fails_alone_ends_the_run(taught, known):
    """The other one waits for it in a collective, whose time limit is long. Its message is the run's, and all is freed.

    known: an error that trying again cannot help.
    """
    config = taught[0]
    register_pickle_by_value(lone_failure)  # the workers have no such module
    rows = np.arange(60)
    error = TrainingError("its rows are gone") if known else OSError("its disk is gone")
    job = student(taught, KD, seed=11 + known, row_subset=lone_failure.OnlyFor(rows, error))
    settings = config.ray.model_copy(update={"collective_timeout_s": LIMIT, "max_retries": 0})
    failed = run_trainings([Training(job, Resources(2, 1, 0))], settings, lambda _, event: None)
    assert str(error) in str(failed[job.fingerprint])
    assert ("worker 1" in str(failed[job.fingerprint])) != known
    until(lambda: ray.available_resources().get("CPU") == 4)


def a_worker() -> int:
    """The process of one of the workers of a Ray Train run."""
    found = []
    for pid in descendants(ray._private.worker.global_worker.node.all_processes["raylet"][0].process.pid):
        with suppress(OSError):  # it has ended
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    assert len(found) == 2
    return found[0]


@pytest.mark.long  # tests/cluster/test_network.py kills one of two workers, too
@pytest.mark.usefixtures("ray_cluster")
def test_killed_workers_of_two_are_replaced_and_that_is_said(taught):
    """However often that happens, if there is an evaluation in between."""
    config, kinds, reasons, killed = taught[0], [], [], []
    job = student(taught, KD, seed=13, steps=80, training={"eval_every": 4})

    def on_event(_, event):
        kinds.append(type(event))
        if isinstance(event, WorkersLost):
            reasons.append(event.reason)
        if isinstance(event, Evaluated) and len(killed) == len(reasons) < 2:
            killed.append(a_worker())
            os.kill(killed[-1], signal.SIGKILL)

    settings = config.ray.model_copy(update={"max_retries": 1})
    assert not run_trainings([Training(job, Resources(2, 1, 0))], settings, on_event)
    shown = [kind for kind in kinds if kind in (Placed, WorkersLost, Done)]
    assert shown == [Placed, WorkersLost, Placed, WorkersLost, Placed, Done]
    for reason in reasons:
        assert re.match(r"worker \d: .*died", reason)
        assert len(reason) < 250


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_lost_workers_without_retries_end_the_training(taught):
    config, killed = taught[0], []
    job = student(taught, KD, seed=14, steps=40, training={"eval_every": 4})

    def on_event(_, event):
        if isinstance(event, Evaluated) and not killed:
            killed.append(a_worker())
            os.kill(killed[0], signal.SIGKILL)

    settings = config.ray.model_copy(update={"max_retries": 0})
    failed = run_trainings([Training(job, Resources(2, 1, 0))], settings, on_event)
    assert re.search(r"worker \d: .*died", str(failed[job.fingerprint]))
    until(lambda: ray.available_resources().get("CPU") == 4)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # trials of two are in test_sweep.py
def test_training_without_room_says_so_and_ends(taught, workers, monkeypatch, caplog):
    """Another command holds what it asks for. What starts several workers needs no room: its start is not theirs."""
    monkeypatch.setattr(room, "FIRST_SECONDS", 0.0)
    starts_at_once = ray.remote(num_cpus=0)(lambda: bool(run_trainings))  # an idle process with all imported
    assert ray.get(starts_at_once.remote())
    everything = placement_group([{"CPU": 4}])
    assert everything.wait(LIMIT)
    job = student(taught, KD, seed=20 + workers)
    settings = taught[0].ray.model_copy(update={"timeout_s": 2.0})
    try:
        with caplog.at_level(logging.INFO, "raykd"):
            failed = run_trainings([Training(job, Resources(workers, 1, 0))], settings, lambda _, event: None)
    finally:
        remove_placement_group(everything)
    text = str(failed[job.fingerprint])
    assert len(text.splitlines()) == 1
    assert all(
        part in text for part in (job.name, "1 CPU", "4 CPU", "0 CPU", "student.num_cpus", "ray.timeout_s = 2 s")
    )
    assert ("student.workers" in text) == (workers == 2)
    assert any(job.name in r.getMessage() and "ray.timeout_s" in r.getMessage() for r in caplog.records)
    assert not job.done
    until(lambda: remove_orphans() or ray.available_resources().get("CPU") == 4)


def test_job_that_another_process_trains_is_waited_for(taught):
    """It says who holds it; it ends once nothing has changed there for ray.timeout_s."""
    job = student(taught, KD, seed=30)
    job.folder.mkdir(parents=True)
    settings = taught[0].ray.model_copy(update={"timeout_s": 0.5})
    events = run_training(Training(job, Resources(1, 1, 0)), settings, Flag(job.store, "stop"))
    with FileLock(job.folder / "lock"):
        (job.folder / "lock.holder").write_text("process 7 on elsewhere")
        assert [type(next(events)) for _ in range(2)] == [Started, Locked]
        with pytest.raises(TrainingError, match=r"process 7 on elsewhere.*ray.timeout_s = 0.5"):
            next(events)


def test_the_last_write_is_found_while_drafts_come_and_go(tmp_path):
    """Files and folders that its trainer renames or deletes meanwhile are no error."""
    (tmp_path / "lock").touch()
    assert last_written(tmp_path) == 0
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            with new_folder(tmp_path / "a" / "model") as draft:
                (draft / "x").touch()
            write_atomically(tmp_path / "a" / "checkpoint", b"x", durable=False)
            shutil.rmtree(tmp_path / "a")

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        assert max(last_written(tmp_path) for _ in range(2000)) > 0
    finally:
        over.set()
        writer.join()


def test_job_that_another_process_has_trained_is_found(taught):
    job = student(taught, KD, seed=31)
    list(train(job))
    events = run_training(Training(job, Resources(1, 1, 0)), taught[0].ray, Flag(job.store, "stop"))
    with FileLock(job.folder / "lock"):
        assert [type(next(events)) for _ in range(2)] == [Started, Locked]
    assert [type(event) for event in events] == [AlreadyTrained]
    with FileLock(job.folder / "lock", timeout=0):
        """It is free again."""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_stopped_while_no_replica_serves_it_skips_no_step(taught, monkeypatch):
    """Live, two steps ahead: the checkpoint is of the steps that were trained, not of those that were asked for."""
    served = taught[2]
    directory = directory_here()
    actors = [TeacherActor.options(num_cpus=0).remote(LogitStore.of(taught[0]), 1, 0) for _ in served]
    ray.get([actor.load.remote(one, set()) for one, actor in zip(served, actors, strict=True)])
    clients: list[TeacherClient] = []
    monkeypatch.setattr(loader, "TeacherClient", lambda *given: clients.append(TeacherClient(*given)) or clients[-1])
    monkeypatch.setattr(live, "_REFRESH_SECONDS", 0.0)

    def announce(serving: bool) -> None:
        for one, actor in zip(served, actors, strict=True):
            ray.get(directory.put.remote(one.key.fingerprint, [actor] if serving else []))

    access = loader.TeacherAccess(directory=directory, in_flight=2, timeout_s=LIMIT)
    job = student(taught, KD, seed=12, steps=10)
    rows = sum(len(encoded.open()) for encoded in job.train)
    refs = [
        dataclasses.replace(t, served=s, folds=np.full(rows, -1)) for t, s in zip(job.teachers, served, strict=True)
    ]
    job = dataclasses.replace(job, live=True, teachers=tuple(refs))
    announce(True)
    straight = list(train(job, access=access))
    state = weights(job)
    shutil.rmtree(job.folder)

    clients.clear()
    gone = False
    events = train(job, stop=lambda: gone and not all(client.actors for client in clients), access=access)
    first = [next(event for event in events if isinstance(event, Evaluated))]  # Progressed comes by the clock
    assert first[0].step == 2
    announce(False)
    gone = True
    first += list(events)
    assert isinstance(first[-1], Stopped)
    stopped = first[-1].step
    assert stopped < 10
    assert [step for e in first if hasattr(e, "history") for step, _ in e.history] == list(range(1, stopped + 1))
    announce(True)
    rest = list(train(job, access=access))
    assert isinstance(rest[0], Resumed)
    assert rest[0].step == stopped
    assert curve(first + rest) == curve(straight)
    assert_same(state, weights(job))
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize("at", [4, 10])
def test_a_training_that_is_stopped_in_an_evaluation_makes_it_later(taught, monkeypatch, at):
    """It does not lose the steps before it, and ends in the same model. The last evaluation is one of step 10."""
    job = student(taught, KD, seed=14, steps=10, training={"eval_every": 4})
    straight = list(train(job))
    state = weights(job)
    shutil.rmtree(job.folder)
    asked, evaluations, predict = [], [], evaluation.predict

    def predicting(*given):
        evaluations.append(given)
        if len(evaluations) == {4: 1, 10: 3}[at]:
            asked.append(True)
        yield from predict(*given)

    monkeypatch.setattr(evaluation, "predict", predicting)
    first = list(train(job, stop=lambda: bool(asked)))
    assert isinstance(first[-1], Stopped)
    assert first[-1].step == at
    rest = list(train(job))
    assert [type(event) for event in rest[:2]] == [Resumed, Evaluated]
    assert rest[1].step == rest[0].step == at
    assert curve(first + rest) == curve(straight)
    assert [e.metrics for e in (*first, *rest) if isinstance(e, Evaluated)] == [
        e.metrics for e in straight if isinstance(e, Evaluated)
    ]
    assert_same(state, weights(job))


def test_a_compiled_step_is_the_plain_one_to_rounding(taught, monkeypatch):
    """Without dropout, of two micro-batches. The backend captures the passes but compiles no C++, which takes long."""
    monkeypatch.setenv(BACKEND, "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    found = {}
    for on in (False, True):
        changes = {"compile": on, "accumulation": 2, "learning_rate": 0.001}
        job = student(taught, KD, seed=41, steps=12, training=changes)
        assert not counters["stats"]["unique_graphs"]
        found[on] = curve(train(job))
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4, atol=1e-7)
    assert 1 <= counters["stats"]["unique_graphs"] <= 3, "one graph, and perhaps one for lengths that differ"
    assert not counters["graph_break"], "the whole model is in it"


def test_lengths_that_repeat(taught):
    """Rounded up to 16, but not above max_length, here 32; and only where that does not change a decision's shape."""
    _, prepared, _ = taught
    task, processor = prepared.task, prepared.student.model.processor
    rows = prepared.student.splits["train"].open()
    rows = rows.select(np.argsort(rows["length"])[:4])[:]
    longest = max(rows["length"])
    for padded, width in ((task, longest), (compiled.with_repeated_lengths(task), 16)):
        batch = padded.collate(rows, processor)
        assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (4, width)
        assert batch.inputs["attention_mask"].sum(1).tolist() == rows["length"]
    tokens = {"length": [20], "input_ids": [[5] * 20]}
    for most, width in ((32, 32), (24, 24), (20, 20), (8, 20)):
        assert pad_tokens(tokens, ["input_ids"], processor, 16, most)[0]["input_ids"].shape == (1, width)
