"""A primary metric of which a lower value is better, wherever models are chosen, compared or written about.

`mirrored` turns a made-up experiment in accuracy into one in NLL, 3 - 2 x accuracy on every example. So everything that
is said must be the same, with gains twice as large; only the words for the direction, and the digits, differ.
"""

import dataclasses
from html import escape
from typing import Any

import numpy as np
import pytest
from browser import needs_browser, rendered
from matplotlib.figure import Figure as Canvas
from test_conclusion import analyzed, arm, child, usual
from test_results import scored
from tiny import reviews_job

from raykd.common.metrics import decimals
from raykd.config.load import build, override
from raykd.experiment.ending import _best_student
from raykd.plan.prepare import prepare
from raykd.plan.trainings import teacher_jobs
from raykd.reports import page, parallel_figure, result_figures, search_figures
from raykd.reports.analysis import Analysis, analyze_arms, leaderboard, validation_choice
from raykd.reports.arms import Arm, Arms, find_arms
from raykd.reports.caveats import caveats, how_it_was_made, trials_at_chance
from raykd.reports.conclusion import conclusion
from raykd.reports.figures import LIGHT, Drawing
from raykd.reports.format import best_gains, cells
from raykd.reports.note import note, winner_metrics
from raykd.reports.page import ReportSection, html, markdown
from raykd.reports.read import Child
from raykd.tasks.text_classification import TextClassification
from raykd.tracking.chance import is_at_chance
from raykd.tracking.results import table
from raykd.training.events import Evaluated
from raykd.training.loop import train


def loss(accuracy):
    return 3 - 2 * accuracy


def mirrored(analysis: Analysis, metric: str = "nll", loss=loss) -> Analysis:
    def run(one: Child) -> Child:
        metrics = {
            key.replace("accuracy", metric): loss(value) if key.endswith("accuracy") else value
            for key, value in one.metrics.items()
        }
        return dataclasses.replace(one, metrics=metrics)

    def mirrored_arm(one: Arm) -> Arm:
        scores = {split: loss(values) for split, values in one.scores.items()}
        return dataclasses.replace(one, runs=[run(r) for r in one.runs], scores=scores)

    experiment = dataclasses.replace(
        analysis.experiment,
        primary_metric=metric,
        metric=metric,
        share=False,
        children=[run(c) for c in analysis.experiment.children],
        chance={split: dict([(metric, loss(v["accuracy"]))]) for split, v in analysis.experiment.chance.items()},
    )
    return analyze_arms(experiment, Arms([mirrored_arm(a) for a in analysis.arms.all], analysis.arms.row_groups))


SITUATIONS: dict[str, Analysis] = {
    "beats": usual([0.85, 0.86]),
    "not shown": usual([0.74, 0.745]),
    "below": usual([0.6, 0.6]),
    "one seed": usual([0.95]),
    "a control is better": usual([0.80, 0.81], arm("label_smoothing", "control", [0.9, 0.9], 0.99)),
    "two methods": usual([0.81, 0.81], arm("kd", "method", [0.80, 0.80], 0.94)),
    "little to distill": analyzed(
        arm("kd", "method", [0.8, 0.8], 0.8),
        arm("fine-tuning", "finetune", [0.8, 0.81], 0.8),
        arm("a", "teacher", [0.7], 0.7),
        arm("ensemble", "ensemble", [0.7], 0.7),
    ),
    "at chance": analyzed(
        arm("kd", "method", [0.5, 0.5], 0.5),
        arm("a", "teacher", [0.4], 0.4),
        chance={"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.5}},
    ),
    "a teacher at chance": analyzed(
        arm("weighted", "method", [0.95, 0.96], 0.95),
        arm("fine-tuning", "finetune", [0.52, 0.53], 0.70),
        arm("a", "teacher", [0.52], 0.5),
        arm("b", "teacher", [0.73], 0.76),
        chance={"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.52}},
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_judgement_is_the_same(situation):
    high = SITUATIONS[situation]
    low = mirrored(high)
    assert low.experiment.lower
    assert low.verdict == high.verdict
    assert [t.name for t in low.competent_teachers] == [t.name for t in high.competent_teachers]
    assert [t.name for t in low.unbeaten] == [t.name for t in high.unbeaten]
    assert [low.at_chance(a) for a in low.arms.all] == [high.at_chance(a) for a in high.arms.all]
    assert len(caveats(low)) == len(caveats(high))
    for name, gain in best_gains(high).items():
        other = best_gains(low)[name]
        assert (other.value, other.low, other.high) == pytest.approx(
            (2 * gain.value, 2 * gain.low, 2 * gain.high), nan_ok=True
        )
        assert other.shown == gain.shown
    for ours, theirs in zip(leaderboard(low), leaderboard(high), strict=True):
        assert ours.arm.name == theirs.arm.name
        assert ours.kept == pytest.approx(theirs.kept, nan_ok=True), "a share of the ensemble's gain has no unit"
    choices = validation_choice(low), validation_choice(high)
    assert (choices[0] is None) == (choices[1] is None)
    if choices[0] and choices[1]:
        assert choices[0][2].low == pytest.approx(2 * choices[1][2].low)


def test_the_answer_says_better_and_worse():
    text = conclusion(mirrored(SITUATIONS["beats"]))
    assert text.startswith(
        "The student, weighted (W = 0.5), scores 1.290 test NLL (lower is better): 0.300 better than fine-tuning"
    )
    assert "better than its best teacher on validation, b (+" in text
    assert text.endswith("; the student beats its teachers.")
    below = conclusion(mirrored(SITUATIONS["below"]))
    assert "worse than its best teacher on validation, b (−" in below
    assert below.endswith("the student is shown to be worse than that teacher.")
    for said in (text, below):
        assert "%" not in said.replace("95%", "")
        assert " over fine" not in said
        assert " points" not in said


def test_chance_is_a_ceiling():
    low = mirrored(SITUATIONS["at chance"])
    assert "it is not below chance (2.000)" in conclusion(low)
    low = mirrored(SITUATIONS["a teacher at chance"])
    assert any(line.startswith("At or above chance on test (1.960)") for line in caveats(low))
    assert [is_at_chance({"perplexity": value}, {"perplexity": 30.0}) for value in (29.0, 30.0, 31.0)] == [
        False,
        True,
        True,
    ]
    assert [is_at_chance({"accuracy": value}, {"accuracy": 0.5}) for value in (0.4, 0.5, 0.6)] == [True, True, False]


def test_teachers_alone():
    teachers = analyzed(
        arm("a", "teacher", [0.7], 0.7),
        arm("b", "teacher", [0.8], 0.8),
        arm("ensemble", "ensemble", [0.9], 0.9),
        command="teach",
    )
    text = conclusion(mirrored(teachers))
    assert "b, scores 1.400 test NLL (lower is better), the uniform ensemble 1.200 (a gain of +0.200, 95%" in text


@pytest.fixture
def no_predictions(monkeypatch):
    """A made-up experiment has no files of predictions."""
    monkeypatch.setattr(page, "details", lambda analysis: None)


def test_pages_and_mlflow_have_no_percents(no_predictions):
    low = mirrored(SITUATIONS["beats"])
    section = ReportSection("digits", low, [])
    row = next(line for line in markdown([section]).splitlines() if line.startswith("| **weighted**"))
    assert "| 1.290 ± 0.01" in row
    assert "+0.300" in row
    assert "%" not in row.replace("103%", ""), "but the share that is kept of the ensemble's gain"
    assert "NLL: lower is better; a gain is how much lower it is." in html([section])
    assert any(line.startswith("NLL: lower is better.") for line in how_it_was_made(low))
    assert "| **weighted (W = 0.5)** | 1.100 | 1.290" in note(low)
    assert winner_metrics(low)["gain/over_fine_tuning"] == pytest.approx(0.3)


def language_models() -> ReportSection:
    """The made-up experiment with what else is measured of language models: no calibration, and no GPU."""
    low = mirrored(SITUATIONS["beats"])
    for run in (run for one in low.arms.all for run in one.runs):
        run.metrics.update(
            {"final_test/perplexity": 125.1, "final_test/accuracy": 0.159, "final_test/divergence": 0.25}
        )
    return ReportSection("lm", low, [])


def test_one_method_is_not_several():
    assert any("those of 1 method over fine-tuning" in line for line in how_it_was_made(SITUATIONS["beats"]))


def test_markdown_has_no_empty_columns(no_predictions):
    sections = [language_models()]
    [heads] = [line for line in markdown(sections).splitlines() if line.startswith("| method | setting")]
    assert heads == "| method | setting | seeds | validation | test | gain over fine-tuning | share kept |"


@needs_browser
def test_scores_of_language_models_fit_a_phone(no_predictions, tmp_path):
    frame = f'<iframe style="width: 400px" srcdoc="{escape(html([language_models()]))}"></iframe>'
    measure = "const page = document.querySelector('iframe').contentDocument.documentElement;"
    measure += "document.title = page.scrollWidth - page.clientWidth"
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title></title>{frame}<script>onload = () => {{ {measure} }}</script>")
    assert "<title>0</title>" in rendered(path.as_uri(), tmp_path / "browser")


def test_experiments_in_points_and_in_nats_have_axes_of_their_own(no_predictions):
    high = SITUATIONS["beats"]
    both = [ReportSection("a", high, []), ReportSection("b", mirrored(high), [])]
    circles = [text.count('cx="') for text in (html(both), html(both[:1]), html(both[1:]))]
    assert circles[0] > circles[1] == circles[2]
    alone = html([both[0], dataclasses.replace(both[0], slug="c")])
    first = [line for line in html(both).splitlines() if "<circle" in line][:3]
    assert first == [line for line in alone.splitlines() if "<circle" in line][:3]


@pytest.mark.parametrize(
    ("value", "expected"), [(1.29, 3), (31.7, 2), (317.0, 1), (54321.0, 0), (0.5, 3), (0.021, 4), (0.0021, 5)]
)
def test_digits_follow_the_size(value, expected):
    assert decimals(value, 3) == expected


def test_perplexity_is_written_with_four_digits():
    low = mirrored(SITUATIONS["beats"], "perplexity", lambda accuracy: 40 - 20 * accuracy)
    assert "scores 22.90 test perplexity (lower is better): 3.00 better than fine-tuning" in conclusion(low)
    assert [cells(low, row, leaderboard(low))["test"] for row in leaderboard(low)][-1] == "25.90"


# What chooses ---------------------------------------------------------------------------------------


def test_arms_are_sorted_with_the_lowest_first():
    children = [
        child(name, "student", method, {"final_test/nll": value, "final_validation/nll": value})
        for name, method, value in (("x", "kd", 1.5), ("y", "weighted", 1.2), ("z", "annealing", 1.9))
    ]
    experiment = mirrored(analyzed(children=children)).experiment
    experiment.children[:] = children
    assert [a.name for a in find_arms(experiment).all] == ["weighted", "kd", "annealing"]


def test_settings_that_differ_by_less_than_noise_are_the_lowest_two():
    low = mirrored(SITUATIONS["beats"])
    trials = [
        child(f"t{i}", "trial", "weighted", {"final_validation/nll": value}, {"raykd.arm": "weighted"})
        for i, value in enumerate((1.1, 1.8, 9.0, 9.001))
    ]
    low.experiment.children.extend(trials)
    assert not any("did not choose the setting" in line for line in caveats(low)), "the worst two are close"
    low.experiment.children.append(
        child("t4", "trial", "weighted", {"final_validation/nll": 1.101}, {"raykd.arm": "weighted"})
    )
    assert any("did not choose the setting" in line for line in caveats(low))


def test_trials_at_chance():
    low = mirrored(SITUATIONS["at chance"])
    low.experiment.children.extend(
        child(f"t{i}", "trial", "kd", {"final_validation/nll": value}, {"raykd.arm": "kd"})
        for i, value in enumerate((1.0, 2.5))
    )
    said = trials_at_chance(low)[0]
    assert said.startswith("1 of 2 finished trials ended at or above chance on validation (2.000): 1 of kd.")


def test_the_student_that_is_named_is_the_lowest():
    runs = [scored(f"s{i}", "student", 0.5, i, "kd", model=f"m{i}") for i in range(3)]
    for run, value in zip(runs, (1.5, 1.2, 1.9), strict=True):
        run.metrics["validation"]["nll"] = value
    assert _best_student(runs, "nll") is runs[1]
    runs[0].details["mlflow_model_id"] = "m"  # a sweep registers the best method's; a control can be listed after it
    assert _best_student(runs, "nll") is runs[0]


def test_table_on_the_screen():
    runs = [
        dataclasses.replace(scored(name, role, 0.5, i, model=name), scores=np.full(100, value),
                            chance={"perplexity": 30.0}, primary_metric="perplexity")
        for i, (name, role, value) in enumerate((("a", "teacher", 31.5), ("b", "teacher", 12.5)))
    ]  # fmt: skip
    for run in runs:
        value = float(run.scores[0])
        run.metrics.update({split: {"perplexity": value, "nll": np.log(value)} for split in ("validation", "test")})
    shown = table(runs, "perplexity", False, 200)
    assert shown.title == "perplexity, lower is better (95% interval over test examples)"
    assert shown.caption == "* has learnt nothing: at or above chance, which is 30.000 on test: a"
    assert [column.header for column in shown.columns].count("perplexity") == 0, "it is the column test"
    cells_of = {column.header: list(column.cells) for column in shown.columns}
    assert cells_of[""] == ["a *", "b"]
    assert cells_of["test"] == ["31.500", "12.500"]
    assert cells_of["nll"] == ["3.4500", "2.5257"]


def test_a_training_keeps_its_lowest_checkpoint(tmp_path, monkeypatch):
    """An existing task, with another primary metric of its own."""
    monkeypatch.setattr(TextClassification, "primary_metric", "nll")
    config = build(override(reviews_job(tmp_path), {"training.steps": 4, "training.eval_every": 1}))
    job = teacher_jobs(config, prepare(config))[config.teachers[0].name][0]
    values = [e.metrics["nll"] for e in train(job) if isinstance(e, Evaluated)]
    assert len(set(values)) == 4
    assert job.result()["generations"][0]["validation"]["nll"] == pytest.approx(min(values))
    assert job.result()["headline"] == "nll"


# Figures --------------------------------------------------------------------------------------------


@pytest.fixture
def axes(monkeypatch):
    """The first axes of each figure, as it is made."""
    drawn: list[Any] = []

    def drawing(plot, height=3.0):
        canvas = Canvas()
        plot(canvas, LIGHT)
        drawn.append(canvas.axes[0])
        return Drawing(plot, height)

    for module in (search_figures, parallel_figure, result_figures):
        monkeypatch.setattr(module, "Drawing", drawing)
    return drawn


def swept() -> Analysis:
    """Trials of weighted distillation at two W, two each, and of plain KD."""
    low = mirrored(SITUATIONS["beats"])
    for i, (method, w, value) in enumerate(
        (("weighted", 0.5, 1.4), ("weighted", 0.5, 1.2), ("weighted", 0.0, 1.6), ("kd", 1.0, 1.5), ("kd", 1.0, 1.3))
    ):
        setting = {"W": w} if method == "weighted" else {}
        metrics = {"final_validation/nll": value}
        low.experiment.children.append(child(f"t{i}", "trial", method, metrics, {"raykd.arm": method}, **setting))
    return low


def test_score_against_w_joins_the_lowest(axes):
    search_figures.w_curve(swept())
    lines = {line.get_linestyle(): line for line in axes[0].lines}
    assert axes[0].get_ylabel() == "validation NLL (lower is better)"
    assert lines["-"].get_xydata().tolist() == [[0.0, 1.6], [0.5, 1.2]]
    assert set(lines["--"].get_ydata()) == {1.3}, "the best trial without weighting"


def test_only_correctness_weighting_has_a_w(axes):
    """Another weighting has the neutral W = 1, and is not plain KD. Of more trials the best is better by chance."""
    low = swept()
    for i, (method, weighting, teacher, value) in enumerate(
        (("weighted", "entropy", "None", 0.1), ("kd", "likelihood", "None", 0.2), ("kd", "mean", "a", 0.3))
    ):
        metrics, setting = {"final_validation/nll": value}, {"W": 1.0, "weighting": weighting, "teacher": teacher}
        low.experiment.children.append(child(f"o{i}", "trial", method, metrics, {"raykd.arm": method}, **setting))
    figure = search_figures.w_curve(low)
    lines = {line.get_linestyle(): line for line in axes[0].lines}
    assert set(lines["--"].get_ydata()) == {1.3}
    assert "at most" not in figure.caption
    for i, value in enumerate((1.8, 1.9)):
        metrics = {"final_validation/nll": value}
        low.experiment.children.append(child(f"p{i}", "trial", "kd", metrics, {"raykd.arm": "kd"}))
    assert "(4, and at most 2 at one W" in search_figures.w_curve(low).caption


def test_the_thick_line_is_the_lowest_trial(axes):
    figure = parallel_figure.parallel(swept())
    assert "the best (weighted)" in figure.caption
    thick = [line for line in axes[0].lines if line.get_linewidth() == 2.6]
    assert len(thick) == 1
    assert thick[0].get_ydata()[-1] == 0.0, "the lowest score"


def test_only_a_parameters_axis_is_logarithmic_and_says_so(axes):
    """Perplexities of 2 to 200, and learning rates of three decades."""
    low = swept()
    trials = low.experiment.of("trial")
    for trial, value, rate in zip(trials, (101.0, 2.0, 200.0, 50.0, 51.0), (1e-5, 1e-4, 1e-3, 1e-4, 1e-3), strict=True):
        trial.metrics["final_validation/nll"] = value
        trial.params["student.training.learning_rate"] = str(rate)
    parallel_figure.parallel(low)
    places = {round(line.get_ydata()[-1], 9) for line in axes[0].lines if len(line.get_xdata()) > 2}
    assert places == {round((value - 2) / 198, 9) for value in (101, 2, 200, 50, 51)}
    names = [label.get_text() for label in axes[0].get_xticklabels()]
    assert names == ["method", "W", "learning rate (log)", "validation\nNLL (lower is better)"]


def test_brighter_is_better():
    bright, dark = (sum(search_figures.ramp(LIGHT, sign)(1.0)[:3]) for sign in (1, -1))
    assert bright > dark, "the highest value"


def test_no_figure_of_mistakes():
    figure = result_figures.mistakes(mirrored(SITUATIONS["beats"]))
    assert figure.drawing is None
    assert "NLL does not say on which examples a model is wrong" in figure.caption
