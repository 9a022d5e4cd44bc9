"""What an installed package declares as entry points, which a job names by one word."""

import sys
from pathlib import Path

import pytest
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.common.own_code import read_code
from raykd.config.load import build, override
from raykd.config.schema import DataConfig
from raykd.data.source import load_rows
from raykd.plan.own_functions import code_by_function
from raykd.search.space import Space
from raykd.tasks import make_task

PAGES = Path(__file__).parents[1] / ".docs" / "pages"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
POINTS = """
[raykd.tasks]
stars = own_stars.tasks:Stars
regression = own_stars.tasks:Stars
[raykd.weightings]
margin = own_stars.methods:margin
[raykd.divergences]
squared = own_stars.methods:squared
whole_module = own_stars.methods
[raykd.datasets]
reviews = own_stars.rows:load
"""


def python(page: str, heading: str) -> str:
    return (PAGES / page).read_text().split(f"## {heading}")[1].split("```python\n")[1].split("```")[0]


def install(folder: Path, name: str, points: str) -> None:
    """What pip writes of a package's metadata."""
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(METADATA.format(name=name))
    (about / "entry_points.txt").write_text(points)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """The folder of installed packages, one of which has the documentation's task, functions and data set."""
    folder = tmp_path / "site"
    install(folder, "own-stars", POINTS)
    package = folder / "own_stars"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(python("tasks.md", "Your own task"))
    (package / "methods.py").write_text(python("methods.md", "Your own weighting or divergence"))
    (package / "rows.py").write_text(python("data.md", "A data set from your own code"))
    monkeypatch.syspath_prepend(folder)
    yield folder
    for module in [name for name in sys.modules if name.partition(".")[0] == "own_stars"]:
        del sys.modules[module]


def test_a_job_names_them_by_one_word(site, tmp_path):
    values = {"task.type": "stars", "method.weighting": "margin", "method.divergence": "squared"}
    config = build(override(reviews_job(tmp_path), values))
    by_path = {"task.type": "own_stars.tasks:Stars", "method.weighting": "own_stars.methods:margin"}
    by_path |= {"method.divergence": "own_stars.methods:squared"}
    same = build(override(reviews_job(tmp_path), by_path))
    assert config == same, "so their fingerprints are equal, too"
    assert config.task.code == same.task.code
    assert [module.name for module in config.task.code.modules] == ["own_stars", "own_stars.tasks"]
    assert type(make_task(config.task)).__name__ == "Stars"
    assert config.task.kind == "text-classification"
    before = code_by_function(config)
    assert before.keys() == {"own_stars.methods:margin", "own_stars.methods:squared"}

    methods = site / "own_stars" / "methods.py"
    methods.write_text(methods.read_text() + "# changed\n")
    assert all(code.digest != before[path].digest for path, code in code_by_function(config).items())
    assert read_code({"task.type": config.task.type}) == config.task.code

    data = DataConfig(source="reviews", train="train[:3]")
    assert load_rows(data, "train")["review"] == ["review 0: bad", "review 1: good", "review 2: bad"]


def test_a_sweep_draws_them(site, tmp_path):
    space = {"method.type": ["weighted"], "method.weighting": {"grid": ["mean", "margin"]}}
    space["method.divergence"] = ["squared", "jsd"]
    config = build(reviews_job(tmp_path, search={"space": space, "algorithm": "grid"}))
    assert code_by_function(config).keys() == {"own_stars.methods:margin", "own_stars.methods:squared"}
    [arm] = [arm for arm in Space(config).arms if arm.name == "weighted"]
    drawn = [(point["method.weighting"], point["method.divergence"]) for point in Space(config).points(arm)]
    pairs = [(w, d) for w in ("mean", "own_stars.methods:margin") for d in ("own_stars.methods:squared", "jsd")]
    assert sorted(drawn) == sorted(pairs)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        # One of raykd's own names: both are named.
        ({"task.type": "regression"}, ["one of raykd's own", "own-stars (own_stars.tasks:Stars)"]),
        # No such name: raykd's own, then those of packages.
        ({"task.type": "star"}, ["Did you mean stars?", "one of image-classification", "of installed packages"]),
        ({"method.weighting": "marginal"}, ["one of mean, correctness", "installed packages margin (own-stars)"]),
        ({"method.divergence": "stars"}, ["one of forward_kl", "squared (own-stars)"]),
        ({"method.divergence": "whole_module"}, ["own_stars.methods, which is not module:name"]),
    ],
)
def test_an_unusable_name(site, tmp_path, values, parts):
    with pytest.raises(ConfigError) as error:
        build(override(reviews_job(tmp_path), values))
    [(key, value)] = values.items()
    assert (error.value.key, error.value.value) == (key, value)
    positions = [str(error.value).index(part) for part in parts]
    assert positions == sorted(positions)


def test_two_packages_with_one_name(site, tmp_path):
    install(site, "other-stars", "[raykd.weightings]\nmargin = other_stars:margin\n")
    with pytest.raises(ConfigError, match="other-stars .other_stars:margin., own-stars .own_stars.methods:margin."):
        build(override(reviews_job(tmp_path), {"method.weighting": "margin"}))


def test_a_data_set_with_the_name_of_a_file(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    with pytest.raises(ConfigError, match="^data.source = reviews: .*file or folder.*own-stars.*own_stars.rows:load"):
        load_rows(DataConfig(source="reviews"), "train")
    with pytest.raises(ConfigError, match=r"installed packages have reviews \(own-stars\)"):
        load_rows(DataConfig(source="no_such_reviews"), "train")
