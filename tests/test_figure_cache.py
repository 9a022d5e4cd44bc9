"""A figure of an earlier report is drawn again when what it shows has changed, and only then."""

import numpy as np
import pytest

from raykd.reports import figure_cache
from raykd.reports.figure_cache import KeptImages, digest_of, image_file
from raykd.reports.figures import Drawing, Style


@pytest.fixture
def drawn(monkeypatch) -> list[Drawing]:
    """The drawings that are drawn from here on."""
    found: list[Drawing] = []
    draw = figure_cache.draw
    monkeypatch.setattr(figure_cache, "draw", lambda drawing: found.append(drawing) or draw(drawing))
    return found


def line(values, label="kd", height=1.0) -> Drawing:
    def plot(canvas, theme):
        canvas.add_subplot().plot(values, label=label, color=theme.ink)

    return Drawing(plot, height)


def images(folder, drawing, name="curve"):
    """As a report makes them: kept or drawn, and written."""
    report = KeptImages(folder)
    made = report.images(name, drawing)
    folder.mkdir(exist_ok=True)
    for theme, image in made.items():
        (folder / image_file(name, theme)).write_bytes(image)
    report.write()
    return made


def test_an_unchanged_figure_is_not_drawn_again(tmp_path, drawn):
    first = images(tmp_path, line([1.0, 2.0]))
    assert images(tmp_path, line([1.0, 2.0])) == first
    assert len(drawn) == 1


@pytest.mark.parametrize("changed", [line([1.0, 2.0000001]), line([1.0, 2.0], "nst"), line([1.0, 2.0], height=1.2)])
def test_a_changed_figure_is_drawn_again(tmp_path, drawn, changed):
    first = images(tmp_path, line([1.0, 2.0]))
    images(tmp_path, changed)
    assert len(drawn) == 2
    assert images(tmp_path, line([1.0, 2.0])) == first, "the image of before is gone, so it is drawn a third time"
    assert len(drawn) == 3


def test_changed_code_draws_again(tmp_path, drawn, monkeypatch):
    images(tmp_path, line([1.0, 2.0]))
    monkeypatch.setattr(figure_cache, "_drawn_by", lambda: "other code")
    images(tmp_path, line([1.0, 2.0]))
    assert len(drawn) == 2


@pytest.mark.parametrize("name", ["curve.png", "curve-dark.png", figure_cache.DRAWN])
@pytest.mark.parametrize("harm", ["gone", "other"])
def test_what_is_damaged_is_drawn_again(tmp_path, drawn, name, harm):
    first = images(tmp_path, line([1.0, 2.0]))
    if harm == "gone":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert images(tmp_path, line([1.0, 2.0])) == first
    assert len(drawn) == 2


def test_one_value_in_the_middle_of_a_long_array_counts():
    """`repr` shows only the ends of such an array."""
    values = np.zeros(5000)
    before = digest_of(line(values.copy()))
    values[2500] = 1e-12
    assert digest_of(line(values)) != before


def test_a_style_counts():
    assert digest_of(line(Style(0, "o", "-"))) != digest_of(line(Style(0, "s", "-")))


def test_what_hides_its_data_cannot_be_drawn():
    """A change of it would not be seen: an experiment reads curves from MLflow."""
    with pytest.raises(TypeError, match="a figure draws a object"):
        digest_of(line(object()))
    with pytest.raises(TypeError, match="a figure draws a function"):
        digest_of(line(lambda: 1))
