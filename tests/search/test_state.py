"""The state of a sweep, without Ray: turns of arms, budgets, failures, resuming, and what TPE learns."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_space import ALL, config

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import Config
from raykd.search.display import SweepDisplay
from raykd.search.journal import Journal, Part, Trial
from raykd.search.space import Space
from raykd.search.state import SweepState
from raykd.search.trial_spec import signed

SPACE = {"method.type": ["kd", "weighted"], "method.alpha": {"uniform": [0.5, 1.0]}}


PARTS = {
    "data.train": Part("train[:60]", "d0"),
    "teachers.a.model": Part("./a", "a0"),
    "student.model": Part("./s", "s0"),
    "student.model.tokenizer": Part("./s", "p0"),
}


def board(
    folder: Path,
    given: Config | None = None,
    resume: bool = False,
    parts: dict[str, Part] = PARTS,
    gpus: float = 0.0,
    **search: Any,
) -> SweepState:
    given = given or config(SPACE, search={"trials": 3, **search})
    return SweepState(Space(given), Journal(folder, given.model_dump(mode="json"), resume, parts), gpus)


def play(board: SweepState, most: int = 1000) -> list[Trial]:
    """Trials one after another; alpha is the score."""
    played = []
    while len(played) < most and (trial := board.next()):
        board.record_score(trial, trial.setting.get("method.alpha", 0.0), seconds=1.0)
        board.record_end(trial, "finished")
        played.append(trial)
    return played


def test_arms_take_turns(tmp_path):
    names = [t.name for t in play(board(tmp_path))]
    first = ["finetune 1", "label_smoothing 1", "kd from t0 1", "kd from t1 1", "kd 1", "weighted 1"]
    assert names == [*first, *(f"{n} {i}" for i in (2, 3) for n in ("kd from t0", "kd from t1", "kd", "weighted"))]


def test_the_best_trial_is_a_finished_one(tmp_path):
    made = board(tmp_path)
    arm = made.arms["kd"]
    assert made.best(arm) is None
    trials = [t for t in iter(made.next, None) if t.arm == "kd"]
    for trial, (state, score) in zip(trials, (("finished", 0.7), ("pruned", 0.9), ("finished", 0.8)), strict=True):
        made.record_score(trial, score, 1.0)
        made.record_end(trial, state)
    assert made.best(arm) is trials[2]


def test_the_best_trial_has_the_lowest_loss(tmp_path):
    made = board(tmp_path)
    arm = made.arms["kd"]
    trials = [t for t in iter(made.next, None) if t.arm == "kd"]
    for trial, value in zip(trials, (1.5, 1.2, 1.9), strict=True):
        made.record_score(trial, signed({"nll": value}, "nll"), 1.0)
        made.record_end(trial, "finished")
    assert made.best(arm) is trials[1]
    console = Console(file=io.StringIO(), width=200)
    SweepDisplay(console, made, "nll", None).changed(trials[1])
    assert "nll 1.2 (the best of its method so far)" in console.file.getvalue()


def test_a_resumed_sweep_continues_as_it_would_have(tmp_path):
    """Finished trials are kept, the running one resumes with its setting, and the others are as without a resume."""
    (tmp_path / "whole").mkdir()
    whole = [(t.name, t.setting) for t in play(board(tmp_path / "whole"))]
    before = board(tmp_path)
    done = play(before, 5)
    elapsed = before.elapsed
    under_way = before.next()
    before.journal.note_runs({"": "parent", "kd 1": "run"})
    before.journal._file.write('{"trial": {"arm": "kd", "nu')  # as a killed driver leaves it
    before.journal.close()
    after = board(tmp_path, resume=True)
    assert after.journal.runs == {"": "parent", "kd 1": "run"}
    assert after.elapsed >= elapsed - 0.001, "the journal rounds to milliseconds"
    rest = play(after)
    assert rest[0].name == under_way.name
    assert [(t.name, t.setting) for t in (*done, *rest)] == whole
    assert all(t.state == "finished" for t in after.trials)
    assert board(tmp_path, resume=True).next() is None


def test_a_resumed_sweep_skips_no_setting_after_an_invalid_one_of_an_older_raykd(tmp_path):
    """Settings that were tried are recognized by their values, not by the numbers of their trials."""
    given = config({"training.batch_size": [4, 32], "training.accumulation": [1, 8]}, search={"trials": 4})
    before = board(tmp_path, given)
    valid = list(before.space.settings(before.arms["kd"]))
    invalid = {"student.training.batch_size": 4, "student.training.accumulation": 8}
    for number, setting in ((1, valid[0]), (2, invalid)):
        trial = Trial("kd", number, setting, 0)
        before.record_end(trial, "finished" if setting is not invalid else "failed", permanent=True)
    before.journal.close()
    after = board(tmp_path, given, resume=True)
    play(after)
    assert [t.setting for t in after.of(after.arms["kd"])] == [valid[0], invalid, *valid[1:]]


def test_a_journal_with_the_earlier_word_for_pruned_is_read(tmp_path):
    made = board(tmp_path)
    trial = made.next()
    made.record_end(trial, "pruned")
    path = tmp_path / "sweep.jsonl"
    path.write_text(path.read_text().replace('"state": "pruned"', '"state": "cut"'))
    resumed = board(tmp_path, resume=True)
    assert resumed.journal.trials[trial.name].state == "pruned"
    assert resumed.next().name != trial.name


def test_a_finished_sweep_can_be_extended(tmp_path):
    play(board(tmp_path))
    longer = board(tmp_path, resume=True, trials=5)
    more = [t.name for t in play(longer)]
    assert more == [f"{n} {i}" for i in (4, 5) for n in ("kd from t0", "kd from t1", "kd", "weighted")]
    settings = [json.dumps(t.setting) for t in longer.of(longer.arms["kd"])]
    assert len(set(settings)) == 5


def test_without_resume_a_sweep_starts_anew_and_keeps_all_earlier_ones(tmp_path):
    path = tmp_path / "sweep.jsonl"
    earlier = []
    for trials in (1, 2, 3):
        assert len(play(board(tmp_path, trials=trials))) == {1: 6, 2: 10, 3: 14}[trials]
        earlier.append(path.read_text())
    assert [(tmp_path / name).read_text() for name in ("sweep.1.jsonl", "sweep.2.jsonl")] == earlier[:2]
    (tmp_path / "sweep.1.jsonl").rename(path)
    assert board(tmp_path, resume=True, trials=1).next() is None, "and can be resumed"


def test_an_earlier_sweep_stays_until_a_trial_of_the_new_one_starts(tmp_path):
    """A forgotten --resume that ends before (no cluster, Ctrl-C while teachers train) has changed nothing."""
    play(board(tmp_path), 5)
    path = tmp_path / "sweep.jsonl"
    before = path.read_text()
    forgotten = board(tmp_path)
    forgotten.journal.note_runs({"": "another parent"})
    forgotten.journal.note_served({"t0": {"weights": "w"}})
    forgotten.journal.close()
    assert [found.name for found in tmp_path.iterdir()] == ["sweep.jsonl"]
    assert path.read_text() == before
    again = board(tmp_path)
    again.journal.note_runs({"": "a third parent"})
    first = again.next()
    again.journal.close()
    assert (tmp_path / "sweep.1.jsonl").read_text() == before
    resumed = board(tmp_path, resume=True)
    assert resumed.journal.runs == {"": "a third parent"}
    assert resumed.next().name == first.name


@pytest.mark.parametrize(
    ("changed", "key", "value", "also"),
    [
        (["data.train"], "data.train", "train[:60]", ""),
        (["teachers.a.model"], "teachers.a.model", "./a", ""),
        (["student.model", "student.model.tokenizer"], "student.model", "./s", "student.model.tokenizer"),
    ],
)
def test_a_part_whose_content_changed_is_refused_by_name(tmp_path, changed, key, value, also):
    """The config is the same: only what it names has another content."""
    play(board(tmp_path), 5)
    before = (tmp_path / "sweep.jsonl").read_text()
    other = PARTS | {name: Part(PARTS[name].value, "another") for name in changed}
    with pytest.raises(ConfigError) as refused:
        board(tmp_path, resume=True, parts=other)
    assert (refused.value.key, refused.value.value) == (key, value)
    assert also in refused.value.reason
    assert "--resume" in refused.value.hint
    assert (tmp_path / "sweep.jsonl").read_text() == before
    moved = {name: Part("/elsewhere", part.digest) for name, part in PARTS.items()}
    assert board(tmp_path, resume=True, parts=moved).next() is not None, "the same content at another place is the same"
    elsewhere = override(config(SPACE, search={"trials": 3}).model_dump(mode="json"), {"data.source": "/elsewhere"})
    assert board(tmp_path, build(elsewhere), resume=True).next() is not None, "also if the config says so"


def test_another_experiment_of_mlflow_is_refused(tmp_path):
    """The sweep's own run would stay in the first one, and the report would miss what is in the other."""
    play(board(tmp_path), 1)
    other = config(SPACE, search={"trials": 3}, tracking={"experiment": "other"})
    with pytest.raises(ConfigError) as refused:
        board(tmp_path, other, resume=True)
    assert refused.value.key == "tracking.experiment"
    elsewhere = config(SPACE, search={"trials": 3}, tracking={"uri": "http://other:5000"})
    assert board(tmp_path, elsewhere, resume=True).next() is not None


def test_a_part_more_or_less_is_refused(tmp_path):
    less = {name: part for name, part in PARTS.items() if name != "student.model.tokenizer"}
    play(board(tmp_path, parts=less), 1)
    with pytest.raises(ConfigError, match=r"student\.model\.tokenizer"):
        board(tmp_path, resume=True)


def test_a_journal_of_an_older_raykd_is_refused(tmp_path):
    """It has only the config, not what its trials depended on."""
    play(board(tmp_path), 3)
    path = tmp_path / "sweep.jsonl"
    first, *rest = path.read_text().splitlines()
    old = {"config": json.loads(first)["config"]}
    path.write_text("\n".join([json.dumps(old), *rest]) + "\n")
    with pytest.raises(ConfigError) as refused:
        board(tmp_path, resume=True)
    assert (refused.value.key, refused.value.value) == ("--resume", path)
    assert "older raykd" in refused.value.reason


def test_a_score_belongs_to_one_training(tmp_path):
    """A trial that waits, and whose training would now be another one, starts without the old score."""
    made = board(tmp_path)
    trial = made.next()
    made.journal.note_training(trial, "f0", made.elapsed)
    made.record_score(trial, 0.9, 1.0)
    made.record_end(trial, "waiting")
    made.journal.close()
    resumed = board(tmp_path, resume=True)
    trial = resumed.next()
    resumed.journal.note_training(trial, "f0", resumed.elapsed)
    assert trial.score == 0.9
    resumed.journal.note_training(trial, "f1", resumed.elapsed)
    assert (trial.score, trial.fingerprint) == (None, "f1")
    resumed.journal.close()
    assert next(iter(board(tmp_path, resume=True).trials)).fingerprint == "f1"


def test_teachers_that_serve_other_logits_are_named(tmp_path):
    served = {"a": {"weights": "w0", "dtype": "float32"}, "b": {"weights": "w1", "dtype": "float32"}}
    made = board(tmp_path)
    assert made.journal.changed_teachers(served) == {}
    made.journal.note_served(served)
    made.journal.close()
    resumed = board(tmp_path, resume=True).journal
    assert resumed.changed_teachers(served) == {}
    assert resumed.changed_teachers(served | {"b": {"weights": "w2", "dtype": "bfloat16"}}) == {
        "b": ["weights", "dtype"]
    }


def test_failed_trials_are_tried_again_unless_they_would_fail_again(tmp_path):
    """Each keeps its number and setting, so every arm still tries as many settings as the others."""
    whole = board(tmp_path)
    names = []
    while trial := whole.next():
        names.append((trial.name, trial.setting))
        if trial.name in ("kd 1", "weighted 2"):
            whole.record_score(trial, 0.4, 1.0)
            whole.record_end(trial, "failed", f"{trial.name}: its node is gone")
        elif trial.name == "kd 2":
            whole.record_end(trial, "failed", "kd 2: the loss is nan", permanent=True)
        else:
            whole.record_score(trial, 0.5, 1.0)
            whole.record_end(trial, "finished")
    whole.journal.close()
    resumed = board(tmp_path, resume=True, trials=4)
    assert resumed.journal.retried == {"kd 1": "kd 1: its node is gone", "weighted 2": "weighted 2: its node is gone"}
    assert [t.score for t in resumed.trials if t.state == "waiting"] == [None, None]
    again = play(resumed)
    assert [(t.name, t.setting) for t in again[:2]] == [n for n in names if n[0] in ("kd 1", "weighted 2")]
    assert [t.name for t in again[2:]] == ["kd from t0 4", "kd from t1 4", "kd 4", "weighted 4"]
    states = {arm.name: [t.state for t in resumed.of(arm)] for arm in resumed.arms.values()}
    assert states["kd"] == ["finished", "failed", "finished", "finished"]
    assert states["weighted"] == ["finished"] * 4
    assert board(tmp_path, resume=True, trials=4).next() is None


def test_tpe_does_not_learn_from_failed_trials(tmp_path):
    pytest.importorskip("optuna")
    given = config({"method.type": ["kd"], "method.alpha": {"uniform": [0.0, 1.0]}},
                   search={"trials": 3, "algorithm": "tpe"})  # fmt: skip
    made = board(tmp_path, given)
    while trial := made.next():
        made.record_score(trial, 0.9, 1.0)
        failed = trial.name == "kd 1"
        made.record_end(trial, "failed" if failed else "finished", "nan" if failed else "", permanent=failed)
    made.journal.close()
    resumed = board(tmp_path, given, resume=True)
    study = resumed._samplers["kd"]._study
    assert len(study.trials) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": SPACE | {"method.alpha": {"uniform": [0.4, 1.0]}}}, r"method.alpha.uniform.0 = 0.4: .* has 0.5"),
        ({"seed": 7}, r"search.seed = 7: the sweep to resume has 0"),
    ],
)  # fmt: skip
def test_a_sweep_with_another_config_is_not_resumed(tmp_path, changed, said):
    play(board(tmp_path))
    space = changed.pop("space", SPACE)
    with pytest.raises(ConfigError, match=said):
        board(tmp_path, config(space, search={"trials": 3, **changed}), resume=True)
    assert len(play(board(tmp_path, resume=True, concurrency=1))) == 0, "and the one that is there is unharmed"


def test_a_sweep_that_is_older_than_a_setting_is_resumed_where_that_is_off(tmp_path):
    play(board(tmp_path))
    file = tmp_path / "sweep.jsonl"
    first, *lines = file.read_text().splitlines()
    header = json.loads(first)
    assert header["config"]["training"].pop("compile") is False
    header["config"]["logits"] |= {"batch_tokens": 16384, "block_rows": 1024}  # defaults then, which change no result
    file.write_text("\n".join([json.dumps(header), *lines]) + "\n")
    with pytest.raises(ConfigError, match="training.compile = True: the sweep to resume has None"):
        board(tmp_path, config(SPACE, search={"trials": 3}, training={"compile": True}), resume=True)
    assert len(play(board(tmp_path, resume=True))) == 0


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="--resume = .*no sweep has been started there"):
        board(tmp_path, resume=True)


def test_a_budget_of_gpu_hours(tmp_path):
    """Of what every trial has held, also before a resume."""
    made = board(tmp_path, gpu_hours=2 / 3600)
    trial = made.next()
    for seconds, gpu_seconds in ((2.0, 2.0), (4.0, 0.5)):  # it shares a GPU from now on
        made.record_score(trial, 0.5, seconds, gpu_seconds)
    made.record_end(trial, "finished")
    assert trial.gpu_seconds == 2.5
    assert made.next() is None
    assert made.over.startswith("search.gpu_hours")
    made.journal.close()
    assert board(tmp_path, gpu_hours=2 / 3600, resume=True).next() is None
    assert board(tmp_path, gpu_hours=2.5 / 3600, resume=True).next() is not None


def test_gpu_hours_of_an_older_journal(tmp_path):
    made = board(tmp_path)
    trial = made.next()
    made.record_score(trial, 0.5, seconds=100.0)
    made.record_end(trial, "finished")
    path = tmp_path / "sweep.jsonl"
    path.write_text(path.read_text().replace(', "gpu_seconds": 0.0', ""))
    assert board(tmp_path, resume=True, gpus=0.5).journal.trials[trial.name].gpu_seconds == 50.0


def test_a_budget_of_hours(tmp_path):
    made = board(tmp_path, hours=1.0)
    assert len(play(made, 2)) == 2
    made.started -= 3601
    assert made.next() is None
    assert made.over.startswith("search.hours = 1 ")


def test_equal_failures_end_the_sweep(tmp_path):
    made = board(tmp_path)
    for i in range(3):
        trial = made.next()
        made.record_end(trial, "failed", f"{trial.name}: the loss is nan at step {i + 3}, learning rate 0.{i}")
    assert made.next() is None
    assert "every trial so far (3) has failed for the same reason: kd from t0 1: the loss is nan" in str(made.error)


def test_a_trial_that_still_ran_when_three_had_failed_saves_the_sweep(tmp_path):
    made = board(tmp_path)
    running = made.next()
    for _ in range(3):
        made.record_end(made.next(), "failed", "the loss is nan")
    assert made.next() is None
    made.record_score(running, 0.5, 1.0)
    made.record_end(running, "finished")
    assert made.error is None
    assert made.next() is not None


def test_the_time_that_is_left(tmp_path, monkeypatch):
    """By the trials that were trained here: not those that were reused, and not what came before the first end."""
    now = [0.0]
    monkeypatch.setattr("raykd.search.display.time", SimpleNamespace(monotonic=lambda: now[0]))
    made = board(tmp_path)
    said = Console(file=io.StringIO(), width=200)
    made.on_change = SweepDisplay(said, made, "accuracy", None).changed
    for seconds, reused in ((1, True), (100, False), (110, False), (130, False)):
        now[0] = float(seconds)
        trial = made.next()
        if reused:
            made.reused.append(trial.name)
        made.record_score(trial, 0.5, 1.0)
        made.record_end(trial, "finished")
    left = [line.rpartition("; ")[2] for line in said.file.getvalue().splitlines()]
    assert made.total == 14
    assert left == ["13 trials left", "12 trials left", "about 110 s left", "about 2 min left"]  # 11 * 10, 10 * 15 s


def test_fewer_trials_than_an_earlier_command_has_started(tmp_path):
    play(board(tmp_path))
    fewer = board(tmp_path, resume=True, trials=1)
    assert sum(t.ended for t in fewer.trials) == fewer.total == len(fewer.trials)
    assert fewer.next() is None


@pytest.mark.parametrize("other", ["another reason", None])
def test_some_failing_does_not(tmp_path, other):
    made = board(tmp_path)
    for reason in ("out of memory", other, "out of memory", "out of memory"):
        trial = made.next()
        if reason is None:
            made.record_score(trial, 0.5, 1.0)
        made.record_end(trial, "finished" if reason is None else "failed", reason or "")
    assert made.next() is not None
    assert made.error is None


def test_tpe_learns_and_remembers(tmp_path):
    """Of 30 draws after 10, where the score is alpha itself, most are high; also after a resume."""
    pytest.importorskip("optuna")
    given = config({"method.type": ["kd"], "method.alpha": {"uniform": [0.0, 1.0]}, "method.temperature": [1, 2]},
                   search={"trials": 40, "algorithm": "tpe"})  # fmt: skip
    play(board(tmp_path, given), 2 + 3 * 10)
    made = board(tmp_path, given, resume=True)
    play(made)
    alphas = [t.setting["method.alpha"] for t in made.of(made.arms["kd"])]
    assert len(alphas) == 40
    early, late = alphas[:10], alphas[10:]
    assert sum(late) / 30 > 0.75 > sum(early) / 10
    assert {t.setting["method.temperature"] for t in made.of(made.arms["kd"])} == {1, 2}


def test_tpe_draws_define_by_run(tmp_path):
    pytest.importorskip("optuna")
    made = board(tmp_path, config(ALL, search={"trials": 6, "algorithm": "tpe"}))
    play(made)
    for arm in made.arms.values():
        for trial in made.of(arm):
            assert ("method.W" in trial.setting) == (arm.name == "weighted")
            assert ("method.generations" in trial.setting) == (arm.name == "born_again")


def test_tpe_on_a_small_space_tries_nothing_twice(tmp_path):
    pytest.importorskip("optuna")
    given = config({"method.type": ["kd"], "method.temperature": [1, 2, 4]}, search={"trials": 8, "algorithm": "tpe"})
    made = board(tmp_path, given)
    play(made)
    assert sorted(t.setting["method.temperature"] for t in made.of(made.arms["kd"])) == [1, 2, 4]


def test_equal_failures_after_an_evaluation_end_the_sweep(tmp_path):
    made = board(tmp_path)
    for _ in range(3):
        trial = made.next()
        made.record_score(trial, 0.5, 1.0)
        made.record_end(trial, "failed", "no space left on device")
    assert made.error is not None


def test_the_score_is_that_of_the_checkpoint_that_is_kept(tmp_path):
    made = board(tmp_path)
    trial = made.next()
    for score in (0.5, 0.9, 0.7):
        made.record_score(trial, score, 1.0)
    assert trial.score == 0.7


def test_the_journal_holds_no_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22hunter22")
    given = config(SPACE, logits={"storage": "s3://key:hunter22hunter22@bucket/logits"}, search={"trials": 1})
    parts = PARTS | {"data.train": Part("https://user:hunter22hunter22@host/train.csv", "d0")}
    play(board(tmp_path, given, parts=parts))
    assert "hunter22" not in (tmp_path / "sweep.jsonl").read_text()
    assert board(tmp_path, given, resume=True, parts=parts).next() is None, "and it is known again"
