"""The style of all figures: light and dark, with colours and shapes that colour-blind readers can tell apart.

matplotlib is imported where something is drawn: a figure that has not changed is not (`raykd.reports.figure_cache`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raykd.reports.arms import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WIDTH, DPI = 5.0, 180  # inches: narrow, so that the text is legible on a phone
# Okabe and Ito 2008, without black, the colour of text, and yellow, which is hard to see on white. On a dark
# background the best method has the lighter blue.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)), (0, (1, 2.5)))


@dataclass(frozen=True)
class Theme:
    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    ramp: tuple[float, float]  # the part of the colour map that stands out from the paper
    colours: tuple[str, ...]


LIGHT = Theme("light", "#ffffff", "#1c1e21", "#6a6f76", "#e3e5e8", (0.0, 0.9), COLOURS)
DARK = Theme("dark", "#15171a", "#e8e9eb", "#9aa0a7", "#2c3035", (0.25, 1.0), COLOURS[5:] + COLOURS[1:5] + COLOURS[:1])


@dataclass(frozen=True)
class Style:
    colour: int | None  # among the theme's; None: its muted ink
    marker: str
    dash: Any

    def line(self, theme: Theme) -> dict[str, Any]:
        colour = theme.muted if self.colour is None else theme.colours[self.colour]
        return {"color": colour, "marker": self.marker, "linestyle": self.dash, "markeredgecolor": theme.paper}


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    key: in file names.
    drawing: None if the figure could not be drawn, and then `caption` says why.
    images: PNG file by theme, once it is drawn.
    """

    key: str
    title: str
    caption: str
    drawing: Drawing | None
    images: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn.

    plot: called once per theme, on an empty canvas of WIDTH x `height` inches. All data that it draws are plain values
        among its free variables, from which `raykd.reports.figure_cache` tells whether the figure has changed.
    """

    plot: Callable[[Canvas, Theme], None]
    height: float = 3.1


def draw(drawing: Drawing) -> dict[str, bytes]:
    """The PNG file by theme."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    images: dict[str, bytes] = {}
    places: list[Any] = []  # of the axes
    for theme in (LIGHT, DARK):
        with rc_context(_settings(theme)):
            canvas = Canvas(figsize=(WIDTH, drawing.height), layout="constrained", dpi=DPI)
            drawing.plot(canvas, theme)
            if places:  # a third of the time is the layout, and colours do not change it
                canvas.set_layout_engine("none")
                for axes, place in zip(canvas.axes, places, strict=True):
                    axes.set_position(place)
            file = io.BytesIO()
            FigureCanvasAgg(canvas).print_png(file, metadata={"Software": None})  # `savefig` would draw it twice
            images[theme.name] = file.getvalue()
            places = [axes.get_position() for axes in canvas.axes]
    return images


def _settings(theme: Theme) -> Any:
    plain = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    inked = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    return {
        **dict.fromkeys(plain, theme.paper),
        **dict.fromkeys(inked, theme.ink),
        "axes.edgecolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "font.size": 9.5,
        "axes.labelsize": 9.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.5,
    }


def styles(arms: Sequence[Arm]) -> dict[str, Style]:
    """By arm, the same in every figure: methods in colour, other trainings in grey, each with its own shape."""
    by_name, methods, others = {}, 0, 0
    for arm in arms:
        if arm.kind == "method":
            at, methods = methods, methods + 1
            by_name[arm.name] = Style(at % len(COLOURS), MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)])
        elif arm.trained:
            at, others = others, others + 1
            by_name[arm.name] = Style(None, MARKERS[-1 - at % len(MARKERS)], DASHES[(at + 1) % len(DASHES)])
    return by_name


def legend_below(canvas: Canvas, axes: Any, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2, columnspacing=1.4)
