"""The space of a sweep: what is drawn for which method, and what is refused before anything starts."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from raykd.common.errors import ConfigError
from raykd.config.load import build, load, override
from raykd.config.parameter import read_parameter
from raykd.config.schema import Config
from raykd.search.ignored import check_overrides, ignored_values
from raykd.search.space import Space, canonical

JOBS = Path(__file__).parents[2] / "jobs"
MODEL = {"config": {"model_type": "vit"}}


def config(space: dict[str, Any], teachers: int = 2, **sections: Any) -> Config:
    search = {"space": space, **sections.pop("search", {})}
    return build(
        {
            "name": "sweep",
            "task": {"type": "image-classification"},
            "data": {"source": "builtin:digits"},
            "teachers": [{"name": f"t{i}", "model": MODEL, "recipe": {"seed": i}} for i in range(teachers)],
            "student": {"model": MODEL},
            "search": search,
            **sections,
        }
    )


ALL = {
    "method.type": ["kd", "annealing", "weighted", "born_again"],
    "method.alpha": {"uniform": [0.5, 1.0]},
    "method.temperature": {"log_uniform": [1, 8]},
    "method.W": {"uniform": [0, 0.75]},
    "method.floor": [0.0, 0.2],
    "method.epsilon": [0.05, 0.1],
    "method.generations": {"integers": [2, 4]},
    "training.learning_rate": [1e-5, 2e-5, 1e-4],
}


def keys_by_arm(space: Space) -> dict[str, set[str]]:
    drawn = {arm.name: list(itertools.islice(space.settings(arm), 20)) for arm in space.arms}
    return {name: {key for setting in settings for key in setting} for name, settings in drawn.items()}


def test_a_key_is_drawn_only_where_it_is_used():
    rate = {"student.training.learning_rate"}
    kd = rate | {"method.alpha", "method.temperature"}
    assert keys_by_arm(Space(config(ALL))) == {
        "finetune": rate,
        "label_smoothing": rate | {"method.epsilon"},
        "kd from t0": kd,
        "kd from t1": kd,
        "kd": kd,
        "annealing": kd | {"method.floor"},
        "weighted": kd | {"method.W"},
        "born_again": kd | {"method.generations"},
    }


def test_a_key_may_depend_on_a_drawn_one():
    """Without a schedule there is no floor; which schedule it is, is drawn first."""
    space = Space(config({"method.floor": [0.1, 0.2], "method.schedule": ["linear", "constant"]}, method="annealing"))
    [arm] = [a for a in space.arms if a.name == "annealing"]
    settings = list(space.settings(arm))
    assert sorted(canonical(s) for s in settings) == [
        '{"method.floor": 0.1, "method.schedule": "linear"}',
        '{"method.floor": 0.2, "method.schedule": "linear"}',
        '{"method.schedule": "constant"}',
    ]


def test_controls_are_always_there():
    names = [(a.name, a.control) for a in Space(config({}, method={"type": "weighted", "W": 0.5})).arms]
    controls = ["finetune", "label_smoothing", "kd from t0", "kd from t1"]
    assert names == [*((n, True) for n in controls), ("weighted", False)]
    names = [a.name for a in Space(config({"method.type": ["finetune", "annealing"]}, teachers=1)).arms]
    assert names == ["finetune", "label_smoothing", "kd", "annealing"], "of one teacher, KD is KD from it"


def test_the_yamls_own_settings_are_those_of_its_own_method():
    space = Space(config({"method.type": ["kd", "weighted"]}, method={"type": "weighted", "W": 0.5, "alpha": 0.9}))
    of = {arm.name: space.config_of(arm, {}, 3) for arm in space.arms}
    assert (of["weighted"].method.W, of["weighted"].method.alpha) == (0.5, 0.9)
    assert of["kd"].method.alpha == 0.5
    assert of["kd from t1"].method.teacher == "t1"
    assert of["finetune"].method.alpha == 0
    assert of["kd"].student.seeds == [3]


def test_the_yamls_own_teacher_is_kept_or_searched():
    given = {"method": {"type": "kd", "teacher": "t1"}}
    space = Space(config({}, **given))
    of = {arm.name: space.config_of(arm, {}, 0).method.teacher for arm in space.arms}
    assert of == {"finetune": None, "label_smoothing": None, "kd from t0": "t0", "kd from t1": "t1", "kd": "t1"}
    space = Space(config({"method.teacher": ["t0", "t1"]}, **given))
    drawn = {a.name: {space.config_of(a, s, 0).method.teacher for s in space.points(a) or ()} for a in space.arms}
    assert drawn == {**{name: {teacher} for name, teacher in of.items()}, "kd": {"t0", "t1"}}


def test_teachers_do_not_depend_on_the_search_space():
    space = Space(config({"training.learning_rate": [0.1, 0.2]}, training={"learning_rate": 0.01}))
    made = space.config_of(space.arms[0], {"student.training.learning_rate": 0.2}, 0)
    assert made.training.learning_rate == 0.01
    assert made.training_of(made.student.training, "").learning_rate == 0.2


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_every_method_tries_as_much_and_nothing_twice(algorithm):
    space = {k: v for k, v in ALL.items() if k not in ("method.W", "method.alpha", "method.temperature")}
    space |= {"method.W": [0, 0.5, 0.75, 0.9], "method.alpha": [0.5, 0.9], "method.temperature": [1, 2, 4]}
    space["method.generations"] = [2, 3]
    made = Space(config(space, search={"algorithm": algorithm, "trials": 12}))
    for arm in made.arms:
        settings = list(itertools.islice(made.settings(arm), made.trials(arm)))
        assert len({canonical(s) for s in settings}) == len(settings) == made.trials(arm)
        expected = {"finetune": 3, "label_smoothing": 6}.get(arm.name, 12)
        assert made.trials(arm) == expected, "12, or all that there are"


def test_a_grid_has_every_point_once():
    space = {"method.type": ["kd", "weighted"], "method.alpha": [0.5, 0.9], "method.W": {"grid": [0, 0.5]}}
    made = Space(config(space, search={"algorithm": "grid"}))
    assert {arm.name: made.trials(arm) for arm in made.arms} == {
        "finetune": 1,
        "label_smoothing": 1,
        "kd from t0": 2,
        "kd from t1": 2,
        "kd": 2,
        "weighted": 4,
    }


def test_a_grid_key_is_walked_through_and_the_others_are_drawn():
    space = {"method.type": ["weighted"], "method.W": {"grid": [0, 0.5, 0.75]}, "method.alpha": {"uniform": [0.2, 0.9]}}
    made = Space(config(space))
    settings = list(itertools.islice(made.settings(made.arms[-1]), 9))
    assert [s["method.W"] for s in settings] == [0, 0.5, 0.75] * 3
    assert len({s["method.alpha"] for s in settings}) == 9


def test_settings_depend_on_the_seed_alone():
    def first(**search: Any) -> list[dict[str, Any]]:
        made = Space(config(ALL, search=search))
        return [next(made.settings(arm)) for arm in made.arms]

    assert first() == first()
    assert first() != first(seed=1)
    assert first()[2] != first()[3], "arms draw their own"


def test_draws_stay_in_their_range():
    import numpy as np

    rng = np.random.default_rng(0)
    for given, low, high in (({"uniform": [0.99991, 1]}, 0.99991, 1), ({"log_uniform": [1e-5, 1e-4]}, 1e-5, 1e-4)):
        drawn = [read_parameter("k", given).draw(rng) for _ in range(500)]
        assert low <= min(drawn) < max(drawn) <= high
    whole = [read_parameter("k", {"integers": [2, 4]}).draw(rng) for _ in range(100)]
    assert set(whole) == {2, 3, 4}
    logs = [np.log10(read_parameter("k", {"log_uniform": [1e-6, 1]}).draw(rng)) for _ in range(2000)]
    assert abs(np.mean(logs) + 3) < 0.15, "half of them below the geometric middle"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"method.type": ["kd"], "method.W": [0.5]}, "search.space.method.W = .*no method in the space uses it"),
        ({"method.type": ["weighted"], "method.W": [0.5, 1.5]}, r"search.space.method.W = 1.5: it must be from 0 to 1"),
        ({"method.type": ["weighted"], "method.W": {"uniform": [0, 2]}}, "search.space.method.W = 2: it must be"),
        (
            {"training.warmup": [0, 0.1], "student.training.warmup": [0.2, 0.3]},
            r"search.space.student.training.warmup = \[0.2, 0.3\]: it is searched twice",
        ),
        ({"method.temperature": {"uniform": [0, 2]}}, "search.space.method.temperature = 0"),
        ({"method.alpha": []}, "there is nothing to choose from"),
        ({"method.alpha": 0.5}, "it is one value, which cannot be searched"),
        ({"method.alpha": {"unifrom": [0, 1]}}, "not one way to draw"),
        ({"method.alpha": {"uniform": [1, 0]}}, "the first number is not below the second"),
        ({"method.alpha": {"uniform": ["a", 1]}}, "uniform needs two numbers"),
        ({"method.temperature": {"log_uniform": [0, 1]}}, "a logarithm needs numbers above 0"),
        ({"method.generations": {"integers": [1.5, 2]}}, "integers needs two whole numbers"),
        ({"method.alpha": [0.5, 0.5]}, "a value is given twice"),
        ({"method.type": ["weigted"]}, "Did you mean weighted?"),
        ({"method.alhpa": [0.5]}, r"method.alhpa = \[0.5\]: there is no such key. Did you mean method.alpha?"),
        ({"training.lr": [0.5]}, "there is no such key"),
        ({"teachers.*.folds": [1, 4]}, "the same for all trials"),
        ({"data.train": ["train"]}, "the same for all trials"),
        ({"student.seed": [0, 1]}, "Set search.seeds"),
        ({"alpha": [0.5]}, "Did you mean method.alpha?"),
        ({"method.floor": [0.9], "method.type": ["annealing"], "method.alpha": [0.5]}, "cannot end above it"),
    ],
)  # fmt: skip
def test_an_invalid_space_is_refused(space, said):
    with pytest.raises(ConfigError, match=said) as told:
        Space(config(space))
    assert "\n" not in str(told.value)


def test_a_grid_over_a_range_is_refused():
    with pytest.raises(ConfigError, match="search.space.method.alpha = .*finite"):
        Space(config({"method.alpha": {"uniform": [0, 1]}}, search={"algorithm": "grid"}))


def test_values_that_go_together_only_with_others_are_no_mistake():
    """A floor of 0.6 is above KD's preset alpha of 0.5, and below each alpha of this space."""
    space = {"method.type": ["annealing"], "method.floor": [0.0, 0.6], "method.alpha": [0.7, 1.0]}
    assert Space(config(space)).arms[-1].name == "annealing"


def test_born_again_with_live_logits_is_refused():
    with pytest.raises(ConfigError, match=r"logits.mode = live: method.generations = 3"):
        Space(config({"method.type": ["kd", "born_again"]}, logits="live"))


def test_it_needs_neither_torch_nor_ray():
    import subprocess

    code = "import sys, raykd.search.space, raykd.config.load; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_range_of_whole_numbers_has_an_end():
    space = {"method.type": ["born_again"], "method.generations": {"integers": [2, 3]}}
    made = Space(config(space, search={"trials": 4}))
    arm = made.arms[-1]
    assert made.trials(arm) == 2
    assert sorted(s["method.generations"] for s in made.settings(arm)) == [2, 3]


def test_a_key_of_whole_numbers_is_drawn_from_any_range():
    """Uniform means each of them alike; both ends of a logarithmic range are drawn too."""
    space = Space(config({"training.batch_size": {"uniform": [7.5, 10]}, "training.steps": {"log_uniform": [1, 9]}}))
    settings = list(itertools.islice(space.settings(space.arms[0]), 36))
    assert {s["student.training.batch_size"] for s in settings} == {8, 9, 10}
    assert {s["student.training.steps"] for s in settings} == set(range(1, 10))
    assert all(type(value) is int for s in settings for value in s.values())
    with pytest.raises(ConfigError, match=r"search.space.*batch_size.*8.5.*whole numbers"):
        Space(config({"training.batch_size": {"uniform": [8.1, 8.5]}}))


def test_numbers_that_yaml_reads_as_text():
    """YAML 1.1 wants a point in 1e-5; people and the other YAML do not."""
    assert read_parameter("training.learning_rate", ["1e-5", 2e-5]).values == (1e-5, 2e-5)
    assert read_parameter("training.learning_rate", {"log_uniform": ["1e-5", "1e-3"]}).values == (1e-5, 1e-3)
    assert read_parameter("training.precision", ["fp32", "e5"]).values == ("fp32", "e5")


def test_a_range_that_is_exhausted_ends():
    """Four digits are drawn: there are two values between these ends."""
    made = Space(config({"method.alpha": {"uniform": [0.99991, 0.99992]}}, method="annealing"))
    assert len(list(itertools.islice(made.settings(made.arms[-1]), 10))) <= 3


def test_a_batch_with_fewer_rows_than_accumulations_is_not_drawn():
    made = Space(config({"training.batch_size": [4, 32], "training.accumulation": [1, 8]}))
    names = ("student.training.batch_size", "student.training.accumulation")
    found = {tuple(s[name] for name in names) for s in made.settings(made.arms[0])}
    assert found == {(4, 1), (32, 1), (32, 8)}
    assert made.trials(made.arms[0]) == 3, "no more trials are announced than are run"
    Space(config({"training.batch_size": [4, 64], "training.accumulation": [8, 1, 16]}))  # 4 goes with 1 alone
    with pytest.raises(ConfigError) as caught:
        Space(config({"training.batch_size": [4, 32]}, training={"accumulation": 8, "batch_size": 32}))
    assert (caught.value.key, caught.value.value) == ("search.space.student.training.batch_size", 4)
    assert "8 accumulations" in str(caught.value)


@pytest.mark.parametrize("space", [
    {"training.lr": [0.1, 0.2], "method.alpha": [0.3, 0.5]},
    {"method.alpha": [0.3, 0.5], "training.lr": [0.1, 0.2]},
])  # fmt: skip
def test_a_parameter_is_not_blamed_for_another(space):
    with pytest.raises(ConfigError, match=r"training.lr = .*no such key.*learning_rate"):
        Space(config(space))
    wrong = {"method.alpha": [0.3, 0.5], "training.warmup": [1.5, 2.0]}
    with pytest.raises(ConfigError, match=r"search.space.student.training.warmup = 2.0: it must be"):
        Space(config(wrong))


def test_values_that_do_not_go_together_are_not_drawn():
    space = {"method.alpha": {"uniform": [0.1, 1.0]}, "method.temperature": [1, 2]}
    made = Space(config(space, method={"type": "annealing", "floor": 0.3}, search={"trials": 30}))
    drawn = list(itertools.islice(made.settings(made.arms[-1]), 30))
    assert len(drawn) == 30
    assert min(s["method.alpha"] for s in drawn) >= 0.3


def test_only_some_of_many_points_are_checked_when_they_are_counted(monkeypatch):
    monkeypatch.setattr("raykd.search.space._MOST_CHECKED", 3)
    space = {"training.batch_size": [4, 16, 32], "training.accumulation": [1, 8]}  # 5 of 6 are valid
    made = Space(config(space, search={"algorithm": "grid"}))
    assert made.trials(made.arms[0]) in (5, 6)
    few = Space(config(space, search={"trials": 2}))
    assert few.trials(few.arms[0]) == 2


def test_a_grid_that_is_too_large_is_refused():
    space = {"method.alpha": [i / 200 for i in range(1, 200)], "method.temperature": [1 + i / 100 for i in range(200)]}
    with pytest.raises(ConfigError, match=r"search.trials = None: the grid of kd from t0 has more than 20000 points"):
        Space(config(space, search={"algorithm": "grid"}))


# What a sweep ignores --------------------------------------------------------------------------------


TYPES = {"method.type": ["kd", "annealing", "weighted"]}
RATE_AND_EPOCHS = {"training.learning_rate": [1e-5, 2e-5], "training.epochs": [1, 2]}


@pytest.mark.parametrize(
    ("space", "overrides", "key"),
    [
        (RATE_AND_EPOCHS, {"training.learning_rate": 1e-4}, "training.learning_rate"),
        (RATE_AND_EPOCHS, {"student.training.learning_rate": 1e-4}, "student.training.learning_rate"),
        ({"student.training.learning_rate": [1e-5, 2e-5]}, {"training.learning_rate": 1e-4}, "training.learning_rate"),
        (RATE_AND_EPOCHS, {"training.steps": 50}, "training.steps"),
        ({"training.steps": [50, 60]}, {"student.training.epochs": 2}, "student.training.epochs"),
        (TYPES, {"method": "weighted"}, "method.type"),
        (TYPES, {"method.temperature": 4}, "method.temperature"),
        (TYPES, {"student.seed": [0, 1, 2]}, "student.seed"),
        (TYPES, {"baseline": False}, "baseline"),
        (RATE_AND_EPOCHS, {"training.warmup": 0.1, "student.seed": 3, "method.alpha": 0.9}, None),
        (
            TYPES,
            {"method.schedule": "cosine"},
            "method.schedule",
        ),  # kd would be annealing
        ({"method.type": ["annealing", "kd"]}, {"method": "annealing", "method.schedule": "cosine"}, "method.type"),
        (TYPES, {"teachers.*.recipe.training.learning_rate": 1e-4}, None),
        (TYPES | {"method.temperature": [2, 4]}, {"search.space.method.temperature": [4, 8]}, None),
        (TYPES, {"method.temperature": 2.0}, None),  # as the others have it
    ],
)
def test_an_override_without_effect_is_refused(space, overrides, key):
    before = config(space).model_dump(exclude_unset=True)
    job = build(override(before, overrides))
    if key is None:
        check_overrides(job, overrides)
        return
    with pytest.raises(ConfigError) as error:
        check_overrides(job, overrides)
    assert error.value.key == key


def test_the_teachers_use_what_is_searched_for_the_student():
    given = {"training.learning_rate": 1e-4}
    with pytest.raises(ConfigError) as error:
        check_overrides(config(RATE_AND_EPOCHS), given)
    assert "recipe.training.learning_rate of teachers.*" in error.value.hint


def test_values_of_a_regression_are_those_of_every_method():
    """Their temperature is 1, whatever the method, and nobody has set it."""
    task, space = {"type": "regression"}, {"method.type": ["kd", "annealing"]}
    job = config(space, task=task, method={"type": "kd", "alpha": 0.7})
    assert [line.split(" = ")[0] for line in ignored_values(Space(job))] == ["method.alpha"]
    check_overrides(job, {"method.temperature": 1.0})
    other = config(space, task=task, method="born_again")
    assert list(ignored_values(Space(other))) == []


@pytest.mark.parametrize(
    ("space", "sections", "keys"),
    [
        (TYPES, {}, []),
        (TYPES, {"method": {"type": "kd", "temperature": 4}}, ["method.temperature = 4"]),
        (TYPES, {"method": {"type": "weighted", "W": 0.5}}, []),  # only this method uses it
        ({}, {"method": {"type": "weighted", "alpha": 0.9}}, []),
        (TYPES, {"method": {"type": "born_again", "generations": 2}}, ["method = born_again"]),
        (TYPES | {"method.alpha": [0.5, 0.9]}, {"method": {"type": "kd", "alpha": 0.7}}, []),
        (TYPES, {"baseline": False}, ["baseline = False"]),
        (TYPES, {"student": {"model": MODEL, "seed": [0, 1]}}, ["student.seed = [0, 1]"]),
        (TYPES, {"student": {"model": MODEL, "seed": [0, 1, 2]}}, []),  # as many as search.seeds
        (TYPES, {"teachers": 1}, ["weighting = correctness"]),
    ],
)
def test_what_the_yaml_has_for_distill_is_said(space, sections, keys):
    lines = list(ignored_values(Space(config(space, **sections))))
    assert [line[: len(key)] for line, key in zip(lines, keys, strict=True)] == keys


def test_the_methods_that_a_value_reaches_are_named():
    [line] = ignored_values(Space(config(TYPES, method={"type": "kd", "temperature": 4})))
    assert "for kd from t0, kd from t1, kd only, and not for annealing, weighted" in line


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_job_of_raykds_has_what_its_sweep_ignores(job):
    loaded = load(job)
    if "search" in loaded.model_fields_set:
        assert list(ignored_values(Space(loaded))) == []
