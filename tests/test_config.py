"""The YAML, its overrides and its presets; every job under jobs/; the reference of keys."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raykd.cli import main
from raykd.common.errors import ConfigError
from raykd.config.load import build, load, markdown, override, parse_override, read_yaml, reference
from raykd.config.messages import _OTHER_TOOLS
from raykd.config.methods import PRESETS, Method
from raykd.config.schema import Config, TaskConfig

JOBS = Path(__file__).parent.parent / "jobs"
HEAVY = ("torch", "ray", "transformers", "mlflow", "datasets", "numpy")


def minimal(**sections) -> dict:
    """The least that a job must say."""
    return {
        "name": "least",
        "task": {"type": "text-classification"},
        "data": {"source": "some/set"},
        "teachers": [{"name": "a", "model": "some/model"}],
        "student": {"model": "other/model"},
        **sections,
    }


def test_is_importable_without_torch_or_ray():
    """Reading a YAML imports no large library, so that errors in it are reported at once."""
    code = f"""
import sys, raykd.cli, raykd.config.load
raykd.config.load.load({str(JOBS / "digits.yaml")!r}, ["method.alpha=0.5"])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_job_is_valid(path):
    config = load(path)
    assert config.name == path.stem
    assert path.read_text().startswith("#"), "a job says on top what it asks"
    assert f"[{path.name}]({path.name})" in (JOBS / "README.md").read_text()


def test_the_first_jobs_are_still_there():
    names = {"digits", "sst2_minilm", "sst2_small", "squad_minilm", "squad_electra"}
    assert names <= {p.stem for p in JOBS.glob("*.yaml")}


def test_a_known_task_takes_few_lines():
    config = build(minimal())
    assert config.training.epochs == 3
    assert config.method.type == "kd"
    assert config.student.seeds == [0]
    assert config.data.validation == "validation"


def test_maximal_length_defaults_by_task():
    assert build(minimal()).task.max_length == 128
    assert build(minimal(task={"type": "question-answering"})).task.max_length == 384
    assert build(minimal(task={"type": "question-answering", "max_length": 100})).task.max_length == 100


# Live logits and augmentation ---------------------------------------------------------------------

PICTURES = {"type": "image-classification"}


def augmented(**values) -> dict:
    return {"source": "some/set", "augment": values}


def test_logits_are_stored_unless_they_are_live():
    assert build(minimal()).logits.mode == "stored"
    assert build(minimal(logits="live")).logits == build(minimal(logits={"mode": "live"})).logits
    for text in ("logits=live", "logits.mode=live", "logits={mode: live}"):
        assert build(override(minimal(), dict([parse_override(text)]))).logits.mode == "live"
    tree = minimal(logits={"block_rows": 7})
    logits = build(override(tree, {"logits.mode": "live"})).logits
    assert (logits.mode, logits.block_rows) == ("live", 7)


def test_rows_stay_as_they_are_by_default():
    assert build(minimal()).data.augment is None
    assert build(minimal(data={"source": "s", "augment": None})).data.augment is None


def test_augmentation_of_text_and_of_images():
    text = build(minimal(data=augmented(drop_words=0.1, swap_words=1), logits="live")).data.augment
    assert text.model_dump() == {"shift": 0, "rotate": 0, "drop_words": 0.1, "swap_words": 1}
    assert text.used == {"drop_words": 0.1, "swap_words": 1}
    image = build(minimal(task=PICTURES, data=augmented(shift=0.5, rotate=180), logits="live")).data.augment
    assert image.used == {"shift": 0.5, "rotate": 180}
    # A value of 0 says nothing, whatever the task: the resolved config has all four.
    assert build(minimal(data=augmented(drop_words=0.1, shift=0), logits="live")).data.augment.used == {
        "drop_words": 0.1
    }


@pytest.mark.parametrize("method", ["finetune", "label_smoothing", {"type": "kd", "alpha": 0}])
@pytest.mark.parametrize("logits", ["stored", "live"])
def test_augmentation_where_nothing_distils_needs_no_live_teachers(method, logits):
    config = build(minimal(method=method, data=augmented(drop_words=0.1), logits=logits))
    assert config.data.augment is not None


def test_live_without_augmentation():
    assert build(minimal(task={"type": "question-answering"}, logits="live")).logits.mode == "live"
    assert build(minimal(logits="live", method={"type": "born_again", "generations": 1})).logits.mode == "live"


# Overrides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method.W=0.5", ("method.W", 0.5)),
        ("student.seed=[0, 1]", ("student.seed", [0, 1])),
        ("task.labels=null", ("task.labels", None)),
        ("data.train=train[:10]", ("data.train", "train[:10]")),
        ("tracking.uri=http://host:5000?a=b", ("tracking.uri", "http://host:5000?a=b")),
        ("method={type: kd, alpha: 0.1}", ("method", {"type": "kd", "alpha": 0.1})),
        ("baseline=false", ("baseline", False)),
    ],
)
def test_override_is_a_key_and_a_yaml_value(text, expected):
    assert parse_override(text) == expected


def three_teachers() -> dict:
    return {"teachers": [{"name": "a", "folds": 1}, {"name": "b", "folds": 1}, {"name": "c", "folds": 1}]}


@pytest.mark.parametrize(("step", "changed"), [("1", [1, 4, 1]), ("b", [1, 4, 1]), ("*", [4, 4, 4]), ("c", [1, 1, 4])])
def test_override_finds_an_item_by_number_name_or_star(step, changed):
    tree = override(three_teachers(), {f"teachers.{step}.folds": 4})
    assert [t["folds"] for t in tree["teachers"]] == changed


def test_override_replaces_an_item_of_a_list():
    assert override({"student": {"seed": [1, 2]}}, {"student.seed.1": 7}) == {"student": {"seed": [1, 7]}}


def test_override_makes_sections_that_are_not_there():
    assert override({}, {"ray.timeout_s": 5}) == {"ray": {"timeout_s": 5}}
    assert override({"recipe": None}, {"recipe.seed": 5}) == {"recipe": {"seed": 5}}


def test_override_leaves_the_tree_alone():
    tree = three_teachers()
    override(tree, {"teachers.*.folds": 4})
    assert tree == three_teachers()


def test_override_of_one_use_of_an_anchor_leaves_the_others(tmp_path):
    """`&model` and `*model` are one object once YAML is read; `student.model...` must not mean the teachers."""
    path = tmp_path / "job.yaml"
    path.write_text("teachers: [{name: a, model: &m {config: {size: 1}}}, {name: b, model: *m}]\nstudent: {model: *m}")
    tree = override(read_yaml(path), {"student.model.config.size": 2})
    assert [t["model"]["config"]["size"] for t in tree["teachers"]] == [1, 1]
    assert tree["student"]["model"]["config"]["size"] == 2
    # Nor does one value, set in several places, tie them together.
    tree = override(tree, {"teachers.*.model": {"config": {"size": 5}}, "teachers.a.model.config.size": 6})
    assert [t["model"]["config"]["size"] for t in tree["teachers"]] == [6, 5]


def test_override_reaches_into_a_section_written_as_one_word():
    tree = override({"student": {"model": "some/model"}, "method": "kd"}, {"student.model.config.layers": 3})
    assert tree["student"]["model"] == {"pretrained": "some/model", "config": {"layers": 3}}
    tree = override({"method": "annealing"}, {"method.alpha": 0.3})
    assert tree["method"] == {"type": "annealing", "alpha": 0.3}
    tree = override({"method": {"type": "kd"}}, {"method": "weighted", "method.W": 0.3})
    assert tree["method"] == {"type": "weighted", "W": 0.3}


WEIGHTED = {"type": "weighted", "W": 0.5, "alpha": 0.7}
UNTYPED = {"alpha": 0.7, "temperature": 3}  # kd, by default
FAR = {"mode": "stored", "storage": "/far", "dtype": "float32"}
HUB = {"pretrained": "some/model", "revision": "v1", "tokenizer": "some/tokenizer", "config": {"layers": 3}}


@pytest.mark.parametrize(
    ("tree", "given", "expected"),
    [
        # One that repeats what is there, or the default, changes nothing.
        ({"method": UNTYPED}, ["method.type=kd"], {"method": {"type": "kd", **UNTYPED}}),
        ({"method": UNTYPED}, ["method=kd"], {"method": {"type": "kd", **UNTYPED}}),
        ({"method": WEIGHTED}, ["method=weighted"], {"method": WEIGHTED}),
        ({"logits": {"storage": "/far"}}, ["logits=stored"], {"logits": {"mode": "stored", "storage": "/far"}}),
        ({"student": {"model": HUB}}, ["student.model=some/model"], {"student": {"model": HUB}}),
        ({"training": {"epochs": 5}}, ["training.epochs=5"], {"training": {"epochs": 5}}),
        # One setting of a section leaves the others.
        ({"method": UNTYPED}, ["method.alpha=0.1"], {"method": {"alpha": 0.1, "temperature": 3}}),
        ({"method": WEIGHTED}, ["method.pool=logits"], {"method": {**WEIGHTED, "pool": "logits"}}),
        ({"logits": FAR}, ["logits.mode=live"], {"logits": {**FAR, "mode": "live"}}),
        ({"logits": FAR}, ["logits=live"], {"logits": {**FAR, "mode": "live"}}),
        (
            {"student": {"model": HUB, "seed": 3}},
            ["student.model.pretrained=other"],
            {"student": {"model": {**HUB, "pretrained": "other"}, "seed": 3}},
        ),
        (
            {"data": {"source": "a", "columns": {"text": "s", "label": "l"}, "train": "train[:9]"}},
            ["data.source=b", "data.columns.text=t"],
            {"data": {"source": "b", "columns": {"text": "t", "label": "l"}, "train": "train[:9]"}},
        ),
        (
            {"data": {"augment": {"shift": 0.1}}},
            ["data.augment.rotate=5"],
            {"data": {"augment": {"shift": 0.1, "rotate": 5}}},
        ),
        ({"ray": {"wait_s": 9}}, ["ray.timeout_s=5"], {"ray": {"wait_s": 9, "timeout_s": 5}}),
        # A value that would contradict the new one goes.
        ({"method": UNTYPED}, ["method.type=weighted"], {"method": {"type": "weighted"}}),
        ({"method": UNTYPED}, ["method=weighted", "method.W=0.3"], {"method": {"type": "weighted", "W": 0.3}}),
        ({"method": WEIGHTED}, ["method.alpha=0.1", "method.type=kd"], {"method": {"type": "kd", "alpha": 0.1}}),
        ({"method": WEIGHTED}, ["method.alpha=0.1", "method=kd"], {"method": {"type": "kd", "alpha": 0.1}}),
        ({"student": {"model": HUB, "seed": 3}}, ["student.model=other"], {"student": {"model": "other", "seed": 3}}),
        ({"training": {"epochs": 5, "warmup": 0}}, ["training.steps=9"], {"training": {"steps": 9, "warmup": 0}}),
        (
            {"training": {"epochs": 5}, "student": {"training": {"steps": 7}}},
            ["student.training.epochs=1"],
            {"training": {"epochs": 5}, "student": {"training": {"epochs": 1}}},
        ),
        # What says nothing takes nothing away; two that contradict one another are for the schema to refuse.
        ({"training": {"epochs": 5}}, ["training.steps=null"], {"training": {"epochs": 5, "steps": None}}),
        (
            {"training": {"epochs": 5}},
            ["training.steps=9", "training.epochs=2"],
            {"training": {"epochs": 2, "steps": 9}},
        ),
        (
            {"student": {"model": {"config": {"epochs": 5}}}},
            ["student.model.config.steps=9"],
            {"student": {"model": {"config": {"epochs": 5, "steps": 9}}}},
        ),
        # A section comes before its keys, in whatever order they are given.
        ({"method": WEIGHTED}, ["method.alpha=0.1", "method={type: kd}"], {"method": {"type": "kd", "alpha": 0.1}}),
        (
            {},
            ["teachers.a.folds=2", "teachers=[{name: a, model: m}]"],
            {"teachers": [{"name": "a", "model": "m", "folds": 2}]},
        ),
        # The keys of a search space are dotted themselves.
        (
            {"search": {"space": {"method.alpha": [0.1, 0.2], "method.W": [0]}, "trials": 4}},
            ["search.space.method.alpha=[0.5]"],
            {"search": {"space": {"method.alpha": [0.5], "method.W": [0]}, "trials": 4}},
        ),
        # A number that is also the name of the same item.
        (
            {"teachers": [{"name": "x"}, {"name": "1"}]},
            ["teachers.1.folds=4"],
            {"teachers": [{"name": "x"}, {"name": "1", "folds": 4}]},
        ),
    ],
)
def test_an_override_changes_only_what_it_names(tree, given, expected):
    assert override(tree, dict(map(parse_override, given))) == expected


def test_an_override_that_names_two_items_is_refused():
    tree = {"teachers": [{"name": "1"}, {"name": "x"}]}
    with pytest.raises(ConfigError, match=r"teachers\.1\.folds = 4: item 1 of the list and the item called 1"):
        override(tree, {"teachers.1.folds": 4})


def test_a_key_given_twice_in_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"method = .* alpha"):
        parse_override("method={type: kd, alpha: 1, alpha: 0.5}")


@pytest.mark.parametrize(
    ("space", "given"),
    [
        ("method.alpha", "method.alpha=0.3"),
        ("method.type", "method=kd"),
        ("training.learning_rate", "training.learning_rate=0.1"),
        ("training.learning_rate", "student.training.learning_rate=0.1"),
    ],
)
def test_an_override_of_a_searched_key_is_refused(tmp_path, capsys, space, given):
    path = tmp_path / "job.yaml"
    values = {"method.alpha": [0.1, 0.9], "method.type": ["kd"], "training.learning_rate": [0.1, 0.2]}
    path.write_text(yaml.safe_dump(minimal(search={"space": {space: values[space]}})))
    assert main(["sweep", str(path), given]) == 2
    assert f"search.space.{space}" in capsys.readouterr().err


def test_steps_replace_epochs_and_epochs_steps():
    tree = override({"training": {"epochs": 3}}, {"training.steps": 10})
    assert tree["training"] == {"steps": 10}
    assert override(tree, {"training.epochs": 1})["training"] == {"epochs": 1}
    # Also where one member differs from the shared section.
    config = build(minimal(training={"epochs": 3}, student={"model": "m", "training": {"steps": 10}}))
    own = config.training_of(config.student.training, "student.training")
    assert (own.steps, own.epochs) == (10, None)


def test_another_method_drops_the_old_ones_settings():
    tree = minimal(method={"type": "weighted", "W": 0.5, "alpha": 0.7, "all_wrong": "skip"})
    config = build(override(tree, {"method.type": "annealing", "method.floor": 0.1}))
    assert config.method == Method(type="annealing", floor=0.1)
    # In whatever order they are given, the overrides themselves count.
    config = build(override(tree, {"method.alpha": 0.2, "method.type": "kd"}))
    assert config.method == Method(type="kd", alpha=0.2)
    # The same method keeps its settings.
    assert build(override(tree, {"method.type": "weighted"})).method.W == 0.5


# The resolved config ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.stem for p in JOBS.glob("*.yaml")))
@pytest.mark.parametrize("method", PRESETS)
def test_resolved_config_loads_again(tmp_path, name, method):
    if (name, method) == ("stsb_minilm", "label_smoothing"):
        pytest.skip("a regression has no classes to smooth over")
    generations = ["method.generations=1"] if (name, method) == ("digits_live", "born_again") else []  # live: no more
    config = load(JOBS / f"{name}.yaml", [f"method.type={method}", *generations])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
    assert load(path) == config


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    """A worker runs in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    config = build(minimal(student={"model": "checkpoint"}))
    assert config.student.model.pretrained == str(tmp_path / "checkpoint")
    assert config.output == str(tmp_path / "runs")
    assert config.teachers[0].model.pretrained == "some/model"


def test_the_home_folder_is_meant_where_it_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    tree = {"output": "~/runs", "logits.storage": "~/logits", "logits.cache": "~", "data.transfer": "~/more.parquet"}
    tree |= {"data.source": "~/reviews.csv", "student.model.pretrained": "~/model", "student.model.tokenizer": "~x"}
    config = build(override(minimal(), tree))
    assert config.output == "/home/me/runs"
    assert (config.logits.storage, config.logits.cache) == ("/home/me/logits", "/home/me")
    assert (config.data.source, config.data.transfer) == ("/home/me/reviews.csv", "/home/me/more.parquet")
    assert (config.student.model.pretrained, config.student.model.tokenizer) == ("/home/me/model", "~x")


def test_an_item_whose_name_holds_dots():
    tree = override(minimal(), {"teachers.0.name": "bert.v1"})
    assert build(override(tree, {"teachers.bert.v1.replicas": 3})).teachers[0].replicas == 3


def test_an_own_task_may_use_what_raykds_do_not(tmp_path, monkeypatch):
    text = "from raykd.tasks import ImageClassification\n\n\nclass Own(ImageClassification): ...\n"
    (tmp_path / "own_lengths.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert TaskConfig(type="own_lengths:Own", max_length=64, stride=32).max_length == 64


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        build(minimal()).name = "other"


# Methods ------------------------------------------------------------------------------------------

NEUTRAL = {
    "alpha": 0.0,
    "temperature": 1.0,
    "scale_by_t2": True,
    "schedule": "constant",
    "floor": 0.0,
    "pool": "logits",
    "divergence": "forward_kl",
    "beta": 0.5,
    "weighting": "mean",
    "weight_temperature": 1.0,
    "W": 1.0,
    "all_wrong": "mean",
    "correct_by": "decision",
    "teacher": None,
    "epsilon": 0.0,
    "generations": 1,
    "average_generations": False,
}
EXPECTED = {
    "finetune": {},
    "label_smoothing": {"epsilon": 0.1},
    "kd": {"alpha": 0.5, "temperature": 2.0},
    "annealing": {"alpha": 1.0, "temperature": 2.0, "schedule": "linear"},
    "weighted": {"alpha": 0.5, "temperature": 2.0, "weighting": "correctness", "W": 0.75},
    "born_again": {"alpha": 0.5, "temperature": 2.0, "generations": 3},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_is_its_point_on_the_axes(name):
    """What a method does not use has its neutral value, so that runs of all methods log the same parameters."""
    assert build(minimal(method=name)).method.model_dump() == {"type": name, **NEUTRAL, **EXPECTED[name]}


def test_another_weighting_drops_the_presets_own_weight():
    method = build(minimal(method={"type": "weighted", "weighting": "likelihood"})).method
    assert (method.W, method.weight_temperature) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("method", "key", "setting"),
    [
        ({"type": "weighted", "weighting": "entropy", "W": 0.5}, "method.W", "entropy"),
        ({"type": "weighted", "weight_temperature": 2}, "method.weight_temperature", "correctness"),
        ({"type": "kd", "beta": 0.3}, "method.beta", "forward_kl"),
        ({"type": "kd", "correct_by": "example"}, "method.correct_by", "mean"),
    ],
)
def test_a_key_that_the_method_does_not_use(method, key, setting):
    with pytest.raises(ConfigError) as error:
        build(minimal(method=method))
    assert error.value.key == key
    assert setting in error.value.reason


def test_presets_are_all_tested():
    assert set(EXPECTED) == set(PRESETS)


def test_correctness_on_another_preset_has_a_weight_that_does_something():
    assert Method(type="born_again", weighting="correctness").W == 0.75
    assert Method(type="kd", weighting="correctness", W=1.0).W == 1.0


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("finetune", "alpha", 0.5),
        ("finetune", "epsilon", 0.1),
        ("label_smoothing", "temperature", 2.0),
        ("kd", "W", 0.5),
        ("annealing", "all_wrong", "skip"),
        ("born_again", "correct_by", "example"),
        ("kd", "floor", 0.1),
        ("kd", "average_generations", True),
    ],
)
def test_setting_that_the_method_does_not_use_is_refused(method, setting, value):
    with pytest.raises(ConfigError, match=rf"method\.{setting} = {value}: {method} .* Remove it") as caught:
        Method(type=method, **{setting: value})
    assert caught.value.key == f"method.{setting}"


def test_label_names_what_differs_from_the_preset():
    assert Method(type="weighted").label == "weighted"
    assert Method(type="weighted", W=0.5).label == "weighted W=0.5"
    assert Method(type="kd", teacher="a").label == "kd teacher=a"


# The reference ------------------------------------------------------------------------------------


def test_every_key_has_a_meaning():
    assert [key for key, _, meaning in reference() if not meaning] == []
    keys = [key for key, *_ in reference()]
    assert len(keys) == len(set(keys))
    assert {"name", "teachers.N.recipe.seed", "student.model.config", "method.W", "ray.timeout_s"} <= set(keys)


def test_help_shows_every_key(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for key, default, meaning in reference():
        line = next((row for row in text.splitlines() if row.split()[:1] == [key]), "")
        assert meaning in line
        assert default in line


def test_reference_is_up_to_date():
    """`make reference` writes it."""
    assert (JOBS / "REFERENCE.md").read_text() == "\n".join(markdown()) + "\n"


def test_every_field_of_the_schema_is_in_the_resolved_config():
    def keys(tree: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
            found.add(prefix + key + (".N" if inner is not value else ""))
            if isinstance(inner, dict) and key not in ("config", "columns"):
                found |= keys(inner, prefix + key + (".N." if inner is not value else "."))
        return found

    model = {"config": {"model_type": "llama"}, "tokenizer": {"train_bpe": 300}}
    teachers = [{"name": "a", "model": model, "recipe": {"seed": 1, "lora": {}}}]
    tree = minimal(
        teachers=teachers, student={"model": model, "lora": {}}, data=augmented(drop_words=0.1), logits="live"
    )
    dumped = Config.model_validate(tree).model_dump()
    only_for_tokens = {"logits.keep.top_k", "task.generate.rows", "task.generate.max_new_tokens"}
    assert keys(dumped) | only_for_tokens == {key for key, *_ in reference()}


@pytest.mark.parametrize("member", ["teachers.0", "student"])
def test_two_gpus_for_one_model_are_refused(member):
    """A model uses one GPU: Ray would reserve two, and one would be idle."""
    tree = override(minimal(), {f"{member}.num_gpus": 2})
    with pytest.raises(ConfigError) as caught:
        build(tree)
    assert (caught.value.key, caught.value.value) == (f"{member}.num_gpus", "2.0")
    build(override(tree, {f"{member}.num_gpus": 1}))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.lr", "learning_rate"),
        ("training.num_train_epochs", "epochs"),
        ("training.per_device_train_batch_size", "batch_size"),
        ("training.fp16", "precision"),
        ("student.training.lr", "learning_rate"),
        ("teachers.0.recipe.training.lr", "learning_rate"),
        ("lr", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("epochs", "training.epochs"),
        ("temperature", "method.temperature"),
        ("method.T", "temperature"),
        ("training.temperature", "method.temperature"),
        ("task.max_seq_length", "max_length"),
        ("dataset", "data.source"),
        ("seed", "teachers.N.recipe.seed or student.seed or search.seed"),
        ("training.epocs", "epochs"),
        ("teacher", "teachers"),  # nearer than method.teacher
        ("student.seeds", "seed"),  # nearer than search.seeds
    ],
)
def test_an_unknown_key_names_the_one_that_is_meant(key, meant):
    tree = yaml.safe_load((JOBS / "digits.yaml").read_text())
    with pytest.raises(ConfigError) as error:
        build(override(tree, {key: 1}))
    assert error.value.key.endswith(key.rpartition(".")[2])
    assert error.value.hint == f"Did you mean {meant}?"


def test_names_of_other_tools_stand_for_keys_that_exist_and_are_no_keys_themselves():
    keys = {key for key, _, _ in reference()}
    for name, ours in _OTHER_TOOLS.items():
        assert ours in keys
        assert name == name.lower()
        assert name not in {key.rpartition(".")[2] for key in keys}


def test_all_missing_sections_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        build({"task": {"type": "text-classification"}, "data": {}})
    assert error.value.key == "name, data.source, teachers, student"


@pytest.mark.parametrize("changes", [{"student.workers": 2}, {"task": {"type": "text-generation"}}])
def test_a_step_that_cannot_be_compiled(changes):
    build(override(minimal(), {"training.compile": True}))
    with pytest.raises(ConfigError) as caught:
        build(override(minimal(), {**changes, "training.compile": True}))
    assert (caught.value.key, caught.value.value) == ("training.compile", True)
