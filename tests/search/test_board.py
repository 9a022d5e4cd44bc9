"""The sweep's bookkeeping: turns, budgets, failures, what survives a driver, what TPE learns. No Ray in sight."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_space import ALL, config

from raykd.common.errors import ConfigError
from raykd.config.schema import Config
from raykd.search.journal import Journal, Trial
from raykd.search.space import Space
from raykd.search.state import SweepState

SPACE = {"method.type": ["kd", "weighted"], "method.alpha": {"uniform": [0.5, 1.0]}}


def board(
    folder: Path, given: Config | None = None, resume: bool = False, gpus: float = 0.0, **search: Any
) -> SweepState:
    given = given or config(SPACE, search={"trials": 3, **search})
    return SweepState(Space(given), Journal(folder, given.model_dump(mode="json"), resume), gpus)


def play(board: SweepState, most: int = 1000) -> list[Trial]:
    """Trials one after another; alpha is the score."""
    played = []
    while len(played) < most and (trial := board.next()):
        board.hears(trial, trial.setting.get("method.alpha", 0.0), seconds=1.0)
        board.ends(trial, "finished")
        played.append(trial)
    return played


def test_arms_take_turns(tmp_path):
    names = [t.name for t in play(board(tmp_path))]
    first = ["finetune 1", "label_smoothing 1", "kd from t0 1", "kd from t1 1", "kd 1", "weighted 1"]
    assert names == [*first, *(f"{n} {i}" for i in (2, 3) for n in ("kd from t0", "kd from t1", "kd", "weighted"))]


def test_the_best_has_come_to_its_end(tmp_path):
    made = board(tmp_path)
    arm = made.arms["kd"]
    assert made.best(arm) is None
    trials = [t for t in iter(made.next, None) if t.arm == "kd"]
    for trial, (state, score) in zip(trials, (("finished", 0.7), ("cut", 0.9), ("finished", 0.8)), strict=True):
        made.hears(trial, score, 1.0)
        made.ends(trial, state)
    assert made.best(arm) is trials[2]


def test_a_resumed_sweep_goes_on(tmp_path):
    """Finished trials are kept, the one under way goes on with its setting, and the rest is as it would have been."""
    (tmp_path / "whole").mkdir()
    whole = [(t.name, t.setting) for t in play(board(tmp_path / "whole"))]
    before = board(tmp_path)
    done = play(before, 5)
    under_way = before.next()
    before.journal.note_runs({"": "parent", "kd 1": "run"})
    before.journal._file.write('{"trial": {"arm": "kd", "nu')  # as a killed driver leaves it
    before.journal.close()
    after = board(tmp_path, resume=True)
    assert after.journal.runs == {"": "parent", "kd 1": "run"}
    assert after.elapsed >= before.elapsed - 0.1
    rest = play(after)
    assert rest[0].name == under_way.name
    assert [(t.name, t.setting) for t in (*done, *rest)] == whole
    assert all(t.state == "finished" for t in after.trials)
    assert board(tmp_path, resume=True).next() is None


def test_a_finished_sweep_can_be_extended(tmp_path):
    play(board(tmp_path))
    longer = board(tmp_path, resume=True, trials=5)
    more = [t.name for t in play(longer)]
    assert more == [f"{n} {i}" for i in (4, 5) for n in ("kd from t0", "kd from t1", "kd", "weighted")]
    settings = [json.dumps(t.setting) for t in longer.of(longer.arms["kd"])]
    assert len(set(settings)) == 5


def test_without_resume_a_sweep_starts_anew_and_keeps_the_old_one(tmp_path):
    play(board(tmp_path))
    assert len(play(board(tmp_path))) == 14
    assert (tmp_path / "sweep.jsonl.old").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": SPACE | {"method.alpha": {"uniform": [0.4, 1.0]}}}, r"method.alpha.uniform.0 = 0.4: .* has 0.5"),
        ({"seed": 7}, r"search.seed = 7: the sweep that is there has 0"),
    ],
)  # fmt: skip
def test_another_sweep_is_not_gone_on_with(tmp_path, changed, said):
    play(board(tmp_path))
    space = changed.pop("space", SPACE)
    with pytest.raises(ConfigError, match=said):
        board(tmp_path, config(space, search={"trials": 3, **changed}), resume=True)
    assert len(play(board(tmp_path, resume=True, concurrency=1))) == 0, "and the one that is there is unharmed"


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="--resume = .*no sweep has been started there"):
        board(tmp_path, resume=True)


def test_a_budget_of_gpu_hours(tmp_path):
    made = board(tmp_path, gpus=0.5, gpu_hours=2.5 * 0.5 / 3600)  # 2.5 s of half a GPU; a trial takes 1 s
    assert len(play(made)) == 3
    assert made.over.startswith("search.gpu_hours")


def test_a_budget_of_hours(tmp_path):
    made = board(tmp_path, hours=1.0)
    assert len(play(made, 2)) == 2
    made.started -= 3601
    assert made.next() is None
    assert made.over == "search.hours = 1 are over"


def test_all_failing_alike_ends_the_sweep(tmp_path):
    made = board(tmp_path)
    for i in range(3):
        trial = made.next()
        made.ends(trial, "failed", f"{trial.name}: the loss is nan at step {i + 3}, learning rate 0.{i}")
    assert made.next() is None
    assert "every trial so far (3) has failed for the same reason: kd from t0 1: the loss is nan" in str(made.error)


@pytest.mark.parametrize("other", ["another reason", None])
def test_some_failing_does_not(tmp_path, other):
    made = board(tmp_path)
    for reason in ("out of memory", other, "out of memory", "out of memory"):
        trial = made.next()
        if reason is None:
            made.hears(trial, 0.5, 1.0)
        made.ends(trial, "finished" if reason is None else "failed", reason or "")
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


def test_failing_alike_after_an_evaluation_ends_the_sweep_too(tmp_path):
    made = board(tmp_path)
    for _ in range(3):
        trial = made.next()
        made.hears(trial, 0.5, 1.0)
        made.ends(trial, "failed", "no space left on device")
    assert made.error is not None


def test_the_score_is_that_of_the_checkpoint_that_is_kept(tmp_path):
    made = board(tmp_path)
    trial = made.next()
    for score in (0.5, 0.9, 0.7):
        made.hears(trial, score, 1.0)
    assert trial.score == 0.7


def test_the_journal_holds_no_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22hunter22")
    given = config(SPACE, logits={"storage": "s3://key:hunter22hunter22@bucket/logits"}, search={"trials": 1})
    play(board(tmp_path, given))
    assert "hunter22" not in (tmp_path / "sweep.jsonl").read_text()
    assert board(tmp_path, given, resume=True).next() is None, "and it is known again"
