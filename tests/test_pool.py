"""The teachers at work, in real actors that are really killed; and what they are made of, without Ray."""

import copy
import dataclasses
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from odd_teacher import LIMIT, Hungry, at_work, config_of, files, make, odd, three, until

from raykd.cluster.placement import check_room, fits
from raykd.cluster.resources import Resources
from raykd.common.errors import ConfigError, TrainingError, UserError
from raykd.config.schema import ModelConfig
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.models.inputs import InputRows, input_columns
from raykd.models.prediction import Inference, predict
from raykd.teachers.batching import Batcher
from raykd.teachers.blocks import TeacherWork, missing_blocks
from raykd.teachers.live import Interrupted, LiveLogits, PendingRequest, TeacherClient, directory_here
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replicas import ReplicaGroup
from raykd.teachers.requests import RowsAnswer, pack
from raykd.teachers.serving import TeacherModel

ULP = 1e-3  # of fp16 near 1


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    return make(tmp_path_factory.mktemp("pool"))


@pytest.mark.usefixtures("ray_cluster")
def test_killed_replicas_change_nothing_in_the_store(made, tmp_path, caplog):
    """One replica is killed in the middle of a block; then the other one, so that for a while there is none."""
    config = config_of(made, teachers__a__replicas=2)
    served, store = odd(made.served, tmp_path / "odd"), LogitStore.at(tmp_path / "store")
    with at_work(made, config, served, store) as (pool, reports):
        one, other = killed = until(lambda: len(served.pids()) == 2 and served.pids(), pool)
        os.kill(one, signal.SIGKILL)
        until(lambda: [m for m in caplog.messages if m.startswith("teacher a: lost a replica (")], pool)
        assert pool.replica_groups[0].counts.restarts == 1
        os.kill(other, signal.SIGKILL)
        until(lambda: pool.replica_groups[0].counts.restarts == 2, pool)
        assert files(store) == {}, "nothing half-done"
        served.go.touch()
        pool.wait()
    assert files(store) == files(made.store)
    assert (reports[-1].done, reports[-1].total, reports[-1].restarts) == (120, 120, 2)
    left = [int(line) for line in (served.folder / "left").read_text().split()]
    assert left[:2] == [60, 60], "each of two has half"
    assert left[2:] == [0] * len(left[2:]), "a trial of torch.compile may have ended them"
    assert served.pids() - killed, "another process did the work"
    assert not pool.precompute_running.path.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_block_is_sent_before_the_logits_of_the_last_one_are_read(made, tmp_path):
    """So that a GPU does not wait for the host between two blocks."""
    served, store = odd(made.served, tmp_path / "odd", how="overlap", awaited="5"), LogitStore.at(tmp_path / "store")
    with at_work(made, config_of(made), served, store) as (pool, reports):
        pool.wait()
    assert files(store) == files(made.store)
    assert reports[-1].done == 120
    assert len((served.folder / "order").read_text().split()) == 5, "blocks, each of which waited for the next one"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_teacher_that_keeps_dying_is_named(made, tmp_path):
    config = config_of(made, ray__max_retries=1)
    served = odd(made.served, tmp_path / "odd", "die")
    with at_work(made, config, served, LogitStore.at(tmp_path / "store")) as (pool, _):
        with pytest.raises(TrainingError, match=r"teacher a: its process died or .* failed 2 times in a row \(.+\)"):
            pool.wait()
        assert len(served.pids()) == 2, "one restart"
        assert not pool.precompute_running.path.exists(), "students do not wait for it any more"
        with pytest.raises(TrainingError):
            pool.check()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_checkpoint_that_cannot_be_loaded_is_named(made, tmp_path):
    broken = shutil.copytree(made.model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    served = dataclasses.replace(made.served, models=(ModelConfig(pretrained=str(broken)),))
    with at_work(made, config_of(made), served, LogitStore.at(tmp_path / "store")) as (pool, _):
        with pytest.raises(UserError, match=r"teachers?[ .]a\b.*") as told:
            pool.wait()
        assert "\n" not in str(told.value)
        assert pool.replica_groups[0].counts.restarts == 0, "it is not tried again"


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_teacher_that_hangs_is_named(made, tmp_path):
    served = odd(made.served, tmp_path / "odd")
    with at_work(made, config_of(made, logits__timeout_s=1), served, LogitStore.at(tmp_path / "store")) as (pool, _):
        assert pool.precompute_done.wait(LIMIT)
        with pytest.raises(TrainingError, match=r"teacher a: no answer within logits.timeout_s = 1 s, 2 times"):
            pool.check()
    assert len(served.pids()) == 2, "the second replica has had its chance"


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_two_pools_share_one_store(made, tmp_path):
    config, store = config_of(made), LogitStore.at(tmp_path / "store")
    served = odd(made.served, tmp_path / "odd")
    with at_work(made, config, served, store) as (one, first), at_work(made, config, served, store) as (two, second):
        until(lambda: len(served.pids()) == 2, one)  # both are at the first block
        served.go.touch()
        one.wait()
        two.wait()
        assert first[-1].done == second[-1].done == 120
        assert files(store) == files(made.store)
    stored = TeacherLogits(store, served.key)
    assert missing_blocks(TeacherWork(config.teachers[0], served, made.splits), stored, 30) == []
    assert stored.damaged == []


@pytest.mark.usefixtures("ray_cluster")
def test_pool_that_finds_no_room(made, tmp_path):
    """It says so after ray.timeout_s; closed before that, it does not wait any longer."""
    everything = ray.util.placement_group([{"CPU": 4}])
    assert everything.wait(LIMIT)
    try:
        config, store = config_of(made, ray__timeout_s=0.3), LogitStore.at(tmp_path)
        no_room = pytest.raises(TrainingError, match="teacher a: no room for 1 replica.*ray.timeout_s = 0.3")
        with at_work(made, config, made.served, store) as (pool, _), no_room:
            pool.wait()
        with at_work(made, config_of(made), made.served, store) as (pool, _):
            started = time.monotonic()
            pool.close()
            assert time.monotonic() - started < LIMIT / 4
            pool.check()
    finally:
        ray.util.remove_placement_group(everything)


@pytest.mark.usefixtures("ray_cluster")
def test_same_fingerprint_shares_one_crew(made, tmp_path):
    config = config_of(made)
    other = config.teachers[0].model_copy(update={"name": "b"})
    key = dataclasses.replace(made.served, name="b")
    teacher_works = [TeacherWork(config.teachers[0], made.served, made.splits), TeacherWork(other, key, made.splits)]
    pool = TeacherPool(teacher_works, LogitStore.at(tmp_path), config, 0, lambda p: None)
    assert [(group.name, group.counts.total) for group in pool.replica_groups] == [("a", 120)]
    third = dataclasses.replace(made.served, name="c", dtype="bfloat16")
    pool = TeacherPool(
        [*teacher_works, TeacherWork(other, third, made.splits)], LogitStore.at(tmp_path), config, 0, lambda p: None
    )
    assert len(pool.replica_groups) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_teacher_without_room_continues_in_the_process_of_one_that_is_done(made, tmp_path):
    """Two CPUs per replica, four in all: c waits for room, and has a's process while b is still at work."""
    pool, store, served = three(made, tmp_path, *3 * [{"num_cpus": 2}])
    a, b, c = served
    assert [[group.name for group in round_] for round_ in pool.rounds] == [["a", "b"], ["c"]]
    try:
        pool.start()
        [process] = until(a.pids, pool)
        a.go.touch()
        assert until(c.pids, pool) == {process}
        os.kill(process, signal.SIGKILL)
        until(lambda: c.pids() - {process}, pool)
        c.go.touch()
        until(lambda: pool.progress[2].done == 120, pool)
        assert (pool.progress[1].done, pool.progress[2].restarts) == (0, 1)
        b.go.touch()
        pool.wait()
    finally:
        pool.close()
    until(lambda: ray.available_resources().get("CPU") == 4)
    rows = made.splits["train"][1].open()
    ids, hashes = id_column(rows, "row_id"), [id_column(rows, "input_hash")]
    whole = StoredLogits([TeacherLogits(made.store, made.served.key)], ids, hashes)[range(60)]
    for one in served:
        assert len(TeacherLogits(store, one.key).missing(*ids_of(made))) == 0
        found = StoredLogits([TeacherLogits(store, one.key)], ids, hashes)[range(60)]
        np.testing.assert_allclose(found, whole, atol=2e-3)  # with two threads instead of one


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_teachers_of_several_sizes_wait_for_the_end_of_a_round(made, tmp_path):
    """c is as large as a, but b is not: c starts in a process of its own when both are done."""
    pool, store, served = three(made, tmp_path, *({"num_cpus": cpus} for cpus in (1, 3, 1)))
    a, b, c = served
    assert [[group.name for group in round_] for round_ in pool.rounds] == [["a", "b"], ["c"]]
    c.go.touch()
    try:
        pool.start()
        until(b.pids, pool)
        a.go.touch()
        until(lambda: pool.progress[0].done == 120, pool)
        until(lambda: ray.available_resources().get("CPU") == 1, pool)  # what a had is free
        assert not c.pids()
        b.go.touch()
        pool.wait()
    finally:
        pool.close()
    assert not c.pids() & (a.pids() | b.pids())
    assert all(len(TeacherLogits(store, one.key).missing(*ids_of(made))) == 0 for one in served)


@pytest.mark.usefixtures("ray_cluster")
def test_which_teachers_take_over_from_which(made, tmp_path):
    """Those whose places are the same in everything. On GPUs: tests/test_nodes.py."""
    store = LogitStore.at(tmp_path)

    def group(**changes: Any) -> ReplicaGroup:
        config = config_of(made, **{f"teachers__a__{key}": value for key, value in changes.items()})
        work = TeacherWork(config.teachers[0], made.served, made.splits)
        return ReplicaGroup(work, [], store, config, 0, lambda p: None)

    assert group().can_follow(group())
    assert group(num_gpus=0.5).can_follow(group(num_gpus=0.5))
    assert not group(num_gpus=0.5).can_follow(group())
    for changes in (
        {"num_cpus": 2},
        {"replicas": 2},
        {"replicas": "auto"},
        {"placement": "spread"},
        {"node_labels": {"zone": "a"}},
    ):
        assert not group(**changes).can_follow(group()), changes


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_live_teachers_return_the_stored_logits(made, tmp_path):
    """Also when a replica is killed with requests under way: the answers come, in order."""
    config = config_of(made, teachers__a__replicas=2, logits__mode="live")
    served = odd(made.served, tmp_path / "odd")
    served.go.touch()
    directory = directory_here()
    split, encoded = made.splits["train"]
    opened = encoded.open()
    ids, hashes = id_column(opened, "row_id"), id_column(opened, "input_hash")
    stored = StoredLogits([TeacherLogits(made.store, served.key)], ids, [hashes])
    rows = input_columns(opened, made.teacher.task)
    steps = np.random.default_rng(0).permutation(60)[:48].reshape(6, 8)
    requests = [pack(rows[step], served.folds_of_rows(split.ids, opened)[step]) for step in steps]
    stopped = threading.Event()
    line = TeacherClient("a", served.key.fingerprint, directory, LIMIT, stopped.is_set)
    twin = TeacherClient("b", served.key.fingerprint, directory, LIMIT, stopped.is_set)
    live = LiveLogits([line, twin])
    with at_work(made, config, served, made.store, directory) as (pool, _):
        pool.wait()  # the store is full; its actors stay
        found = live.answer(live.ask([requests[0]] * 2))
        assert found.shape == (2, 8, 1, 2)
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[:1], stored[steps[0]], atol=ULP)
        assert np.ptp(found[0], axis=0).max() > 10 * ULP, "rows differ, so that a mix-up would show"
        assert line.rows == 8, "two teachers that are the same are asked once"

        until(lambda: line._refresh() or len(line.actors) == 2, pool)
        at_first = set(line.actors)
        served.go.unlink()
        for path in served.folder.glob("*.pid"):
            path.unlink()
        asked = [live.ask([request] * 2) for request in requests]
        assert live.in_flight == 6
        os.kill(until(served.pids, pool).pop(), signal.SIGKILL)
        until(lambda: pool.replica_groups[0].counts.restarts == 1, pool)
        served.go.touch()
        for step, questions in zip(steps, asked, strict=True):
            np.testing.assert_allclose(live.answer(questions)[:1], stored[step], atol=ULP)
        assert live.in_flight == 0

        until(lambda: line._refresh() or (set(line.actors) - at_first and len(line.actors) == 2), pool)
        (joined,) = set(line.actors) - at_first  # by itself
        until(lambda: line.ask(requests[0]).actor == joined, pool)

        served.go.unlink()
        asked = [live.ask([request] * 2) for request in requests[:1]]
        stopped.set()
        with pytest.raises(Interrupted, match="stop"):
            live.answer(asked[0])
        at_work_now = until(served.pids, pool)
        hasty = TeacherClient("a", served.key.fingerprint, directory, 1, lambda: False)
        before = pool.replica_groups[0].counts.restarts
        with pytest.raises(TrainingError, match="teacher a: no answer within logits.timeout_s = 1 s, 2 times"):
            hasty.answer(hasty.ask(requests[0]))  # one hangs, and so does the other
        until(lambda: pool.replica_groups[0].counts.restarts == before + 2, pool)
        pool.close()  # while they are replaced
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in at_work_now), pool)
    until(lambda: ray.available_resources().get("CPU") == 4, pool)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_replica_whose_gpu_fails_is_replaced(made, tmp_path, caplog):
    """At a block and at a student's request: its process could compute nothing more."""
    config = config_of(made, logits__mode="live")
    served, store = odd(made.served, tmp_path / "odd", "broken"), LogitStore.at(tmp_path / "store")
    split, encoded = made.splits["train"]
    opened = encoded.open()
    request = pack(input_columns(opened, made.teacher.task)[np.arange(8)], served.folds_of_rows(split.ids, opened)[:8])
    directory = directory_here()
    line = TeacherClient("a", served.key.fingerprint, directory, LIMIT, lambda: False)
    with at_work(made, config, served, store, directory) as (pool, _):
        pool.wait()
        assert files(store) == files(made.store)
        answer = line.answer(line.ask(request))
        assert len(answer.shapes) == 8
        until(lambda: pool.replica_groups[0].counts.restarts == 2, pool)
    why = "lost a replica (AcceleratorError: CUDA error: an illegal memory access was encountered)"
    assert caplog.text.count(why) == 2
    for at in ("block", "request"):
        broken = int((served.folder / f"broken-{at}").read_text())
        assert not Path(f"/proc/{broken}").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_silent_replica_is_replaced_and_complained_of():
    """What it still answers later is taken; when the next one is silent too, that is an error."""
    never = ray.remote(num_cpus=5)(lambda: None).remote()
    said = [ray.put(RowsAnswer(np.full(2, value, np.float16), np.array([[1, 2]]), 0.5)) for value in (1, 2)]

    class Replica:
        def __init__(self, name: bytes, ref: Any) -> None:
            self._actor_id, self.answer = name, SimpleNamespace(remote=lambda request: ref)

    silent, good = Replica(b"\x01", never), Replica(b"\x02", said[0])
    reported: list[str] = []
    directory = SimpleNamespace(
        report_unresponsive=SimpleNamespace(remote=lambda teacher, actor: reported.append(actor))
    )
    line = TeacherClient("a", "f", directory, 0.3, lambda: False, actors=[silent, good])
    line._refresh = lambda without: None  # nobody joins
    request = pack({"length": [1]}, np.zeros(1))
    first = line.ask(request)
    late = PendingRequest(request, said[1], silent, time.monotonic())
    line.open[silent] += 1
    assert line.answer(first).values.tolist() == [1, 1]
    assert reported == ["01"]
    assert line.answer(late).values.tolist() == [2, 2]
    assert sum(line.open.values()) == 0
    line.actors, line.open = [silent, Replica(b"\x03", never)], {}
    with pytest.raises(TrainingError, match=r"teacher a: no answer within logits.timeout_s = 0.3 s, 2 times"):
        line.answer(line.ask(request))
    ray.cancel(never)


def test_batch_that_memory_has_no_room_for_is_halved(made, caplog):
    encoded = made.splits["train"][1]
    task, model = made.teacher.task, made.teacher.models[0]

    def answers(model: torch.nn.Module, halved: list[int]) -> dict[int, np.ndarray]:
        inference = Inference([model], task, made.teacher.processor, torch.device("cpu"))
        pairs = predict(inference, InputRows(encoded.open(), task), on_halved=halved.append)
        return {int(p): row for positions, rows in pairs for p, row in zip(positions, rows, strict=True)}

    unhalved: list[int] = []
    halved: list[int] = []
    whole = answers(model, unhalved)
    hungry = answers(Hungry(model, 4), halved)
    assert unhalved == []
    longest = max(encoded.open()["length"][:])
    assert halved[:4] == [rows * longest for rows in (30, 15, 7, 3)], "60 rows at once at first"
    assert halved == sorted(halved, reverse=True), "what was learnt stays"
    assert hungry.keys() == whole.keys() == set(range(60))
    for position, row in hungry.items():
        np.testing.assert_allclose(row, whole[position], atol=2e-3)
    assert "out of memory with 60 rows" in caplog.text
    with pytest.raises(RuntimeError, match="allocate"):
        answers(Hungry(model, 0), [])  # one row alone


def test_live_rows_that_memory_has_no_room_for_are_halved(made):
    encoded = made.splits["train"][1]
    teacher = TeacherModel(made.served)
    columns = input_columns(encoded.open(), teacher.task)[:10]
    whole = teacher.answer(columns, np.full(10, -1))
    teacher.models = [Hungry(teacher.models[0], 4)]
    parts = teacher.answer(columns, np.full(10, -1))
    assert teacher.halved == 3  # 10 to 5 and 5, and each of these
    np.testing.assert_allclose(np.stack(parts), np.stack(whole), atol=2e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_runs_out_of_memory_warns_and_continues(made, tmp_path, caplog):
    served, store = odd(made.served, tmp_path / "odd", "hungry"), LogitStore.at(tmp_path / "store")
    config = config_of(made, logits__block_rows=12)
    asked = missing_blocks(TeacherWork(config.teachers[0], served, made.splits), TeacherLogits(store, served.key), 12)
    with at_work(made, config, served, store) as (pool, _):
        pool.wait()
    order = [int(line) for line in (served.folder / "order").read_text().split()]
    assert order == [block.positions[0] for block in asked], "a replica works in the order of need"
    left = [int(line) for line in (served.folder / "left").read_text().split()]
    sizes = [len(block.positions) for block in asked]  # the second block is assigned before the first one is answered
    assert left == [sum(sizes), *(sum(sizes[done:]) for done in range(len(sizes) - 1))]
    assert re.search(r"teacher a: \d+ batch(es)? did not fit into memory", caplog.text)
    rows = made.splits["train"][1].open()
    ids, hashes = id_column(rows, "row_id"), [id_column(rows, "input_hash")]
    found, whole = (StoredLogits([TeacherLogits(s, served.key)], ids, hashes)[range(60)] for s in (store, made.store))
    np.testing.assert_allclose(found, whole, atol=2e-3)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_idle_resources_become_replicas_and_make_way(made, tmp_path):
    """Two CPUs per replica, four in all: an extra replica starts, stops when a training needs CPUs, and restarts."""
    config = config_of(made, teachers__a__replicas="auto", teachers__a__num_cpus=2, logits__block_rows=12)
    served, store = odd(made.served, tmp_path / "odd"), LogitStore.at(tmp_path / "store")
    with at_work(made, config, served, store) as (pool, reports):
        both = until(lambda: len(served.pids()) == 2 and served.pids(), pool)
        pool.make_way.set()
        until(lambda: len([p for p in both if Path(f"/proc/{p}").exists()]) == 1, pool)
        until(lambda: ray.available_resources().get("CPU") == 2, pool)
        pool.make_way.clear()
        until(lambda: len(served.pids()) == 3, pool)
        served.go.touch()
        pool.wait()
    assert (reports[-1].done, reports[-1].restarts) == (120, 0)
    assert max(p.replicas for p in reports) == 2
    assert len(TeacherLogits(store, served.key).missing(*ids_of(made))) == 0
    until(lambda: ray.available_resources().get("CPU") == 4)


def ids_of(made: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    rows = [encoded.open() for _, encoded in made.splits.values()]
    return tuple(np.concatenate([id_column(r, name) for r in rows]) for name in ("row_id", "input_hash"))


class Slow:
    """A computation that says what it got and waits until it may go on; rows are their numbers."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, columns: dict[str, list], folds: np.ndarray) -> list[np.ndarray]:
        self.calls.append(columns["number"])
        self.begun.release()
        assert self.go.wait(LIMIT)
        if -1 in columns["number"]:
            raise ValueError("no such row")
        return [np.array([[n, f]]) for n, f in zip(columns["number"], folds, strict=True)]


def asked(batcher: Batcher, numbers: list[int], length: int = 1, fold: int = 0) -> Any:
    """One who asks, in a thread of its own; `got` is the answer or the error. Returns when the request waits."""
    busy, before = bool(batcher.compute.calls), batcher._requests.qsize()

    def ask() -> None:
        try:
            columns = {"number": numbers, "length": [length] * len(numbers)}
            who.got = [row.tolist() for row in batcher(columns, np.full(len(numbers), fold))[0]]
        except ValueError as error:
            who.got = str(error)

    who = SimpleNamespace(thread=threading.Thread(target=ask))
    who.thread.start()
    if busy:  # the request stays where it is
        while batcher._requests.qsize() == before:
            time.sleep(0.001)
    else:
        assert batcher.compute.begun.acquire(timeout=LIMIT)
    return who


def test_requests_that_wait_at_the_same_time_go_together():
    slow = Slow()
    batcher = Batcher(slow, budget=6)
    first = asked(batcher, [0])
    others = [asked(batcher, [1, 2], fold=1), asked(batcher, [3], fold=2)]
    others += [asked(batcher, [4, 5, 6]), asked(batcher, [7, 8])]
    long = asked(batcher, [9], length=9)
    slow.go.set()
    for who in (first, *others, long):
        who.thread.join(LIMIT)
    assert slow.calls == [[0], [1, 2, 3, 4, 5, 6], [7, 8], [9]], "within the budget, in order, a long one alone"
    assert [who.got for who in (first, *others, long)] == [
        [[[0, 0]]],
        [[[1, 1]], [[2, 1]]],
        [[[3, 2]]],
        [[[4, 0]], [[5, 0]], [[6, 0]]],
        [[[7, 0]], [[8, 0]]],
        [[[9, 0]]],
    ]


def test_fewer_pictures_go_together_because_each_is_many_tokens():
    slow = Slow()
    batcher = Batcher(slow, budget=6)
    batcher.tokens_per_length = lambda columns: 3
    first = asked(batcher, [0])
    others = [asked(batcher, [1]), asked(batcher, [2]), asked(batcher, [3])]
    slow.go.set()
    for who in (first, *others):
        who.thread.join(LIMIT)
    assert slow.calls == [[0], [1, 2], [3]]


def test_error_reaches_everyone_whose_rows_went_together():
    slow = Slow()
    batcher = Batcher(slow, budget=100)
    first = asked(batcher, [0])
    group = [asked(batcher, [1]), asked(batcher, [-1])]
    slow.go.set()
    for who in (first, *group):
        who.thread.join(LIMIT)
    assert first.got == [[[0, 0]]]
    assert [who.got for who in group] == ["no such row"] * 2
    assert batcher({"number": [5], "length": [1]}, np.zeros(1, int))[0][0].tolist() == [[5, 0]], "it goes on"


def needs(count: int = 1, cpus: float = 1, gpus: float = 0, **more: Any) -> list[Resources]:
    return [Resources(1, cpus, gpus, **more)] * count


PLAIN = ({"CPU": 4.0}, {})
ONE = ({"CPU": 1.0}, {})
FOUR_SPOT = ({"CPU": 4.0}, {"pool": "spot"})
ONE_SPOT = ({"CPU": 1.0}, {"pool": "spot"})
L4 = ({"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0}, {"pool": "spot"})
SPOT = (("pool", "spot"),)


@pytest.mark.parametrize(
    ("wanted", "nodes", "room"),
    [
        (needs(4), [PLAIN], True),
        (needs(5), [PLAIN], False),
        (needs(cpus=5), [PLAIN, PLAIN], False),  # nothing spans two nodes
        (needs() + needs(cpus=4), [PLAIN, ONE], True),  # the largest goes first
        ([Resources(2, 3, 0)], [PLAIN, PLAIN], True),  # two workers
        ([Resources(2, 3, 0)], [PLAIN], False),
        (needs(8, gpus=0.25), [L4], True),
        (needs(9, cpus=0.5, gpus=0.25), [L4], False),
        (needs(2, cpus=0.5, gpus=0.6), [L4], True),
        (needs(3, cpus=0.5, gpus=0.6), [L4], False),  # a share is of one GPU
        (needs(gpus=2) + needs(gpus=0.1), [L4], False),
        (needs(gpus=1) + needs(2, gpus=0.5), [L4], True),
        (needs(10, cpus=0.1), [ONE], True),  # sums of tenths
        (needs(accelerator="L4"), [PLAIN, L4], True),
        (needs(accelerator="H100"), [PLAIN, L4], False),
        (needs(8, node_labels=SPOT), [PLAIN, L4], True),
        (needs(9, node_labels=SPOT), [PLAIN, L4], False),
        (needs(node_labels=(*SPOT, ("zone", "a"))), [L4], False),
        (needs() + needs(node_labels=SPOT), [ONE_SPOT, ONE], True),  # who needs a label chooses first
        (needs(cpus=4) + needs(cpus=2, node_labels=SPOT), [FOUR_SPOT, PLAIN], True),  # also if it is smaller
        (needs(cpus=4) + needs(cpus=2, node_labels=SPOT), [FOUR_SPOT, ONE], False),
        (needs(), [], False),
    ],
)
def test_what_fits_where(wanted, nodes, room):
    before = copy.deepcopy(nodes)
    assert fits(wanted, nodes) is room
    assert nodes == before, "they are only looked at"


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_replicas_are_told_with_what_there_is(made):
    check_room(config_of(made, teachers__a__replicas=4))
    with pytest.raises(ConfigError) as told:
        check_room(config_of(made, teachers__a__replicas=5))
    assert str(told.value).startswith(
        "teachers.a.replicas = 5 replicas of 1 CPU, 0 GPU: this does not fit the cluster of 1 node (4 CPU, 0 GPU"
    )
    assert "Ask for less" in str(told.value)
    live = {"logits__mode": "live", "teachers__a__replicas": 4}
    with pytest.raises(ConfigError, match=r"logits.mode = live: the student and every teacher at once"):
        check_room(config_of(made, **live))
