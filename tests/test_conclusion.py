"""What the report says of made-up scores: the answer, the leaderboard, what it cannot say, the cost."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from made_up_sweep import params

from raykd.reports.analysis import Analysis, analyze, analyze_arms, leaderboard, over_others
from raykd.reports.arms import Arm, Arms, find_arms, short_number
from raykd.reports.caveats import caveats, failures, how_it_was_made
from raykd.reports.conclusion import conclusion, gain_interval, gain_size, signed
from raykd.reports.costs import Cost, cost, duration, rows_seen, what_it_cost
from raykd.reports.leaderboard_csv import leaderboard_csv
from raykd.reports.more_scores import more_scores
from raykd.reports.read import Child, Experiment
from raykd.reports.statistics import Gain
from raykd.reports.weights import folds, where_w_acts

ROWS = 400


def child(name: str, role: str, method: str = "finetune", metrics=None, tags=None, steps=None, **setting) -> Child:
    flat = {key: str(value) for key, value in params(method, setting).items()}
    return Child(name, name, role, "finished", tags or {}, flat, metrics or {}, steps or {})


def arm(name: str, kind: str, means: list[float], validation: float, setting: str = "", **more) -> Arm:
    """An arm whose seeds are right on so many test examples, the easy ones first but for a few of each seed's own."""
    role = {"finetune": "baseline", "method": "student", "control": "student"}.get(kind, kind)
    rng, scores, runs = np.random.default_rng(len(name)), [], []
    for i, mean in enumerate(means):
        right = np.argsort(np.arange(ROWS) + rng.normal(0, 25, ROWS)) < round(mean * ROWS)
        scores.append(right.astype(float))
        metrics = {"final_test/accuracy": right.mean(), "final_validation/accuracy": validation}
        runs.append(child(f"{name} {i}", role, metrics=metrics | more))
    return Arm(name, kind, setting, runs, {"test": np.stack(scores), "validation": np.stack(scores)})


def analyzed(*arms: Arm, children: list[Child] | None = None, **settings) -> Analysis:
    known = {
        "id": "1", "name": "digits sweep", "uri": "", "command": "sweep", "task": "image-classification",
        "primary_metric": "accuracy", "percent": False, "metric": "accuracy", "algorithm": "random", "version": "0",
        "children": children or [run for a in arms for run in a.runs], "client": None,
    }  # fmt: skip
    ordered = sorted(arms, key=lambda a: -a.mean("final_validation/accuracy"))
    return analyze_arms(Experiment(**known | settings), Arms(ordered, {"test": None, "validation": None}))


def usual(student: list[float], *more: Arm, validation: float = 0.95) -> Analysis:
    return analyzed(
        arm("weighted", "method", student, validation, "W = 0.5"),
        arm("fine-tuning", "finetune", [0.70, 0.71], 0.70),
        arm("a", "teacher", [0.74], 0.74),
        arm("b", "teacher", [0.73], 0.76),
        arm("ensemble", "ensemble", [0.85], 0.85, changed_share=0.1),
        *more,
    )


def test_a_student_that_beats_its_teachers():
    text = conclusion(usual([0.85, 0.86]))
    assert text.startswith("The student, weighted (W = 0.5), scores 85.5% test accuracy: +15.0 points over fine-tuning")
    assert "over its best teacher on validation, b (+" in text, "the best on validation, not on test"
    assert text.endswith("; the student beats its teachers.")


def test_not_shown_is_not_false():
    text = conclusion(usual([0.74, 0.745]))
    assert text.endswith("; the student is not shown to beat its teachers.")
    assert "over its best teacher on validation, b (−" in text


def test_a_difference_that_is_rounded_away_is_not_one_over():
    text = conclusion(usual([0.73, 0.73]))  # as teacher b, which validation prefers
    assert "points over fine-tuning (simultaneous 95% interval" in text
    assert ", level with its best teacher on validation, b (" in text


def test_one_teacher_is_not_called_the_best():
    arms = [a for a in usual([0.85, 0.86]).arms.all if a.name != "b"]
    text = conclusion(analyzed(*arms))
    assert "over its teacher, a (+" in text
    assert "best teacher" not in text


def test_a_student_below_its_teachers():
    analysis = usual([0.6, 0.6])
    assert analysis.verdict == "the opposite is shown"
    assert conclusion(analysis).endswith("the student is shown to be below that teacher.")


def test_every_teacher_must_be_beaten():
    analysis = usual([0.85, 0.86], arm("c", "teacher", [0.85], 0.5))
    assert analysis.verdict == "not shown"
    assert conclusion(analysis).endswith("; the student is not shown to beat all of its teachers: not c.")


def test_more_methods_make_wider_intervals():
    one = usual([0.80, 0.81])
    many = usual([0.80, 0.81], *(arm(f"m{i}", "method", [0.7, 0.7], 0.7) for i in range(9)))
    # Each method over fine-tuning, and each, had it been the best, against the best teacher and the ensemble.
    assert (one.intervals, many.intervals) == (3, 30)
    assert (one.level, many.level) == (pytest.approx(1 - 0.05 / 3), pytest.approx(1 - 0.05 / 30))
    width = [g.high - g.low for g in (j.gain(j.best, j.finetune) for j in (one, many))]
    assert width[1] > 1.2 * width[0]


def test_the_best_method_is_chosen_on_validation():
    analysis = usual([0.80, 0.81], arm("kd", "method", [0.99, 0.99], 0.9))
    assert analysis.best.name == "weighted"
    assert [row.arm.name for row in leaderboard(analysis)][:2] == ["weighted", "kd"]


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_does_not_hide_the_best(unknown):
    scores = {"kd": 0.9, "annealing": unknown, "weighted": 0.95, "born_again": unknown}
    children = [
        child(name, "student", name, {"final_test/accuracy": 0.5, "final_validation/accuracy": value})
        for name, value in scores.items()
    ]
    arms = find_arms(analyzed(children=children).experiment)
    assert [arm.name for arm in arms.all] == ["weighted", "kd", "annealing", "born_again"]


def test_a_control_does_not_win_but_is_named():
    analysis = usual([0.80, 0.81], arm("label_smoothing", "control", [0.9, 0.9], 0.99))
    assert analysis.best.name == "weighted"
    assert any("A control, label_smoothing, is better on validation" in line for line in caveats(analysis))


def test_leaderboard_by_hand():
    analysis = usual([0.80, 0.82])
    rows = {row.arm.name: row for row in leaderboard(analysis)}
    student = rows["weighted"]
    assert student.test == pytest.approx(0.81)
    assert student.sd == pytest.approx(0.02 / math.sqrt(2))
    assert student.gain.value == pytest.approx(0.81 - 0.705, abs=0.002)
    assert student.kept == pytest.approx((0.81 - 0.705) / (0.85 - 0.705), abs=0.02)
    assert rows["fine-tuning"].gain is None
    assert math.isnan(rows["a"].sd)
    assert math.isnan(rows["a"].kept)


def test_no_share_is_kept_of_no_gain():
    analysis = analyzed(
        arm("kd", "method", [0.8], 0.8),
        arm("fine-tuning", "finetune", [0.8], 0.8),
        arm("ensemble", "ensemble", [0.7], 0.7),
    )
    assert math.isnan(leaderboard(analysis)[0].kept)
    assert any("The ensemble is not shown to be better" in line for line in caveats(analysis))


def test_one_seed_is_a_caveat():
    analysis = usual([0.8])
    assert any("There is one seed" in line for line in caveats(analysis))
    assert not any("There is one seed" in line for line in caveats(usual([0.8, 0.8])))


@pytest.mark.parametrize(("tuned", "smoothed"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_arms_with_one_seed_are_named(tuned, smoothed):
    """Gains over fine-tuning have no part for seeds if fine-tuning has one, and look like others in the table."""
    analysis = analyzed(
        arm("kd", "method", [0.8, 0.81, 0.82], 0.9),
        arm("fine-tuning", "finetune", [0.70, 0.71][:tuned], 0.7),
        arm("label_smoothing", "control", [0.72, 0.71][:smoothed], 0.7),
        arm("a", "teacher", [0.7], 0.7),
    )
    assert analysis.gain(analysis.best, analysis.finetune).seeds_known == (tuned > 1)
    found = [line for line in caveats(analysis) if line.startswith("Only one seed")]
    named = ["fine-tuning"] * (tuned == 1) + ["label_smoothing"] * (smoothed == 1)
    assert [line.partition(" of ")[2].partition(" was ")[0] for line in found] == [", ".join(named)] * bool(named)


def test_one_seed_shows_nothing():
    """However clear it is over these test examples: another seed may be worse."""
    analysis = usual([0.95])
    assert analysis.gain(analysis.best, analysis.teacher).low > 0
    assert analysis.verdict == "not shown"
    text = conclusion(analysis)
    assert "95% interval over test examples alone +" in text
    assert text.endswith("; with one seed it cannot be shown whether the student beats its teachers.")
    assert usual([0.95, 0.951]).verdict == "shown"


def test_a_baseline_that_is_a_teacher_is_named():
    analysis = usual([0.80, 0.81])
    assert not any("same model as teacher" in line for line in caveats(analysis))
    analysis.finetune.runs[0].tags["raykd.same_training"] = "a"
    name = analysis.finetune.runs[0].name
    assert any(line.startswith(f"{name} is the same model as teacher a") for line in caveats(analysis))


def test_a_control_counts_once_and_a_method_three_times():
    control = arm("label_smoothing", "control", [0.7, 0.7], 0.7)
    assert usual([0.8, 0.81], control).intervals == 4
    alone = analyzed(arm("kd", "method", [0.8, 0.8], 0.8), arm("a", "teacher", [0.7], 0.7))
    assert alone.intervals == 1, "no fine-tuning, no ensemble"


@pytest.mark.parametrize(("second", "said"), [(0.80, True), (0.60, False)])
def test_validation_that_chose_nothing(second, said):
    """Validation scores are the test's here: 0.81 against 0.80 or 0.60."""
    analysis = usual([0.81, 0.81], arm("kd", "method", [second, second], 0.94))
    assert any("Validation did not choose the method" in line for line in caveats(analysis)) == said


@pytest.mark.parametrize(("second", "said"), [(0.799, True), (0.5, False)])
def test_settings_that_differ_by_less_than_noise(second, said):
    trials = [
        child(f"t{i}", "trial", "weighted", {"final_validation/accuracy": v}, {"raykd.arm": "weighted"})
        for i, v in enumerate((0.8, second))
    ]
    analysis = usual([0.80, 0.81])
    analysis.experiment.children.extend(trials)
    assert any("Validation did not choose the setting" in line for line in caveats(analysis)) == said


def test_teachers_alone():
    analysis = analyzed(
        arm("a", "teacher", [0.7], 0.7),
        arm("b", "teacher", [0.8], 0.8),
        arm("ensemble", "ensemble", [0.9], 0.9),
        command="teach",
    )
    text = conclusion(analysis)
    assert text.startswith("There is no student to evaluate: this run has teachers only; ")
    assert "the best teacher on validation, b, scores 80.0% test accuracy, the uniform ensemble 90.0% (+10.0 p" in text
    assert caveats(analysis) == []


def test_a_student_that_is_a_control():
    arms = arm("fine-tuning", "finetune", [0.6], 0.6), arm("a", "teacher", [0.7], 0.7)
    teacher = arms[1].runs[0]
    text = conclusion(analyzed(*arms, children=[child("student seed 0", "student"), teacher], command="distill"))
    assert "only controls were trained; fine-tuning scores 60.0% test accuracy; its teacher, a, scores 70.0%" in text
    failed = [child("baseline seed 0", "baseline"), child("student seed 0", "student", "kd"), teacher]
    for children in (failed, [failed[0], teacher]):
        assert "none has finished" in conclusion(analyzed(*arms, children=children, command="distill"))


def test_label_smoothing_beats_no_teachers():
    """`distill method=label_smoothing`, where no tag says that it is a control: it learns from labels alone."""
    scores = {"student": 0.9, "baseline": 0.8, "teacher": 0.7}
    methods = {"student": "label_smoothing", "baseline": "finetune", "teacher": "finetune"}
    children = [
        child(role, role, methods[role], {"final_test/accuracy": value, "final_validation/accuracy": value})
        for role, value in scores.items()
    ]
    analysis = analyze(analyzed(children=children, command="distill").experiment)
    assert {a.name: a.kind for a in analysis.arms.all} == {
        "label_smoothing": "control",
        "fine-tuning": "finetune",
        "teacher": "teacher",
    }
    assert (analysis.best, analysis.verdict) == (None, "no student")
    assert "only controls were trained; label_smoothing (ε = 0.1) scores 90.0% test acc" in conclusion(analysis)


def test_a_trial_that_someone_stopped_has_not_failed():
    trials = [
        dataclasses.replace(child(reason, "trial", "kd", tags={"raykd.failure": reason}), state=state)
        for state, reason in (("killed", "Ctrl-C"), ("failed", "loss is nan"))
    ]
    assert failures(analyzed(arm("a", "teacher", [0.7], 0.7), children=trials)) == ["1 × kd: loss is nan"]


@pytest.mark.parametrize("left_out", ["fine-tuning", "ensemble", "a and b"])
def test_the_report_shows_the_rest_if_parts_are_missing(left_out):
    arms = [a for a in usual([0.85, 0.86]).arms.all if a.name not in left_out.split(" and ")]
    text = conclusion(analyzed(*arms))
    assert "scores 85.5% test accuracy" in text
    words = {"fine-tuning": "over fine-tuning", "ensemble": "the uniform ensemble", "a and b": "best teacher"}
    assert words[left_out] not in text
    assert sum(w in text for w in words.values()) == 2


def test_an_arm_without_predictions_has_a_gain_and_no_interval():
    arms = usual([0.85, 0.86]).arms.all
    next(a for a in arms if a.kind == "finetune").scores.clear()
    text = conclusion(analyzed(*arms))
    assert "+15.0 points over fine-tuning (no interval)" in text
    assert text.endswith("the student beats its teachers.")


def test_where_w_acts():
    assert "W changes the weights of 10.0% of the labelled" in where_w_acts(usual([0.8]))
    flat = usual([0.8])
    flat.ensemble.runs[0].metrics["changed_share"] = 0.001
    text = where_w_acts(flat)
    assert "a flat curve over W means nothing" in text
    assert "teachers.*.folds=4" in text
    for teacher in flat.arms.of("teacher"):
        teacher.runs[0].tags["raykd.folds"] = "4"
    assert folds(flat) == "4 folds"
    assert "teachers.*.folds=4" not in where_w_acts(flat)
    del flat.ensemble.runs[0].metrics["changed_share"]
    assert "was not measured" in where_w_acts(flat)


def teacher(name: str, rows: float, seconds: float) -> Child:
    """With the metric's name of an older raykd."""
    return child(name, "teacher", metrics={"store/misses": rows, "fill/seconds": seconds})


def test_cost_by_hand():
    trials = [
        child("kd", "trial", "kd", {"seconds": 10.0, "gpu_seconds": 5.0}),
        child("one teacher", "trial", "kd", {"seconds": 10.0}, teacher="a"),
        child("no teacher", "trial", "finetune", {"seconds": 4.0}),
    ]
    cut = child("cut", "trial", "weighted", {"seconds": 1.0}, {}, {"validation/accuracy": 100})
    object.__setattr__(cut, "state", "pruned")
    children = [teacher("a", 100, 1.0), teacher("b", 100, 3.0), *trials, cut]
    spent = cost(analyzed(children=children).experiment)
    assert (spent.computed, spent.once, spent.trainings, spent.of) == (200, 4.0, 3, 4)
    assert spent.rows_seen == (800 + 800 + 100) * 32
    # a: 0.01 s a row, b: 0.03; the ensemble in "kd" and in "cut", a alone in "one teacher".
    assert spent.inside == pytest.approx((800 * 0.04 + 800 * 0.01 + 100 * 0.04) * 32)
    assert (spent.seconds, spent.gpu_seconds) == (25.0, 5.0)
    text = " ".join(what_it_cost(spent))
    assert "200 rows once, in 4.0 s" in text
    assert "23.5 min, 352 times as much" in text
    assert "took 25 s in all and 5 GPU-seconds" in text


def test_cost_of_live_logits():
    """The teachers took part in the trainings, so nothing says what they would have cost there."""
    children = [teacher("a", 100, 1.0), child("kd", "trial", "kd", {"seconds": 10.0})]
    spent = cost(analyzed(children=children, live=True).experiment)
    assert (spent.computed, spent.once, spent.inside, spent.rows_seen) == (100, 1.0, None, 800 * 32)
    of_rows, of_batches, of_trainings = what_it_cost(spent)
    assert "100 rows of validation and test once" in of_rows
    assert "answered every batch of the 1 distilling training, which saw 25,600 rows" in of_batches
    assert "took 10 s" in of_trainings
    children[0] = teacher("a", 0, 0.0)
    assert "nothing of validation and test" in what_it_cost(cost(analyzed(children=children, live=True).experiment))[0]


def test_cost_where_the_store_had_all():
    children = [teacher("a", 0, 0.0), child("kd", "trial", "kd", {"seconds": 10.0})]
    text = " ".join(what_it_cost(cost(analyzed(children=children).experiment)))
    assert "computed nothing in this run: all of their logits were in the store" in text
    assert "is unknown because their speed was not logged" in text
    assert "took 10 s in all." in text, "no word on GPUs where nothing was logged of them"


def test_cost_that_was_kept_with_the_logits():
    a, b = teacher("a", 0, 0.0), teacher("b", 0, 0.0)
    a.metrics["store/seconds_per_row"], b.metrics["store/seconds_per_row"] = 0.01, 0.03
    spent = cost(analyzed(children=[a, b, child("kd", "trial", "kd", {"seconds": 10.0})]).experiment)
    assert spent.inside == pytest.approx(800 * 32 * 0.04)
    assert "had taken 40.0 ms a row, for all teachers together" in what_it_cost(spent)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (9.04, "9.0 s"),
        (61, "61 s"),
        (1308, "21.8 min"),
        (8280, "2.3 h"),
        (3_599_000, "1,000 h"),
        (4_428_000, "1,230 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("1875", "1875"),
        ("1875.0", "1875"),
        ("123456", "123456"),
        ("0.123456", "0.1235"),
        ("5e-05", "5e-05"),
        ("2.0", "2"),
        ("linear", "linear"),
        ("nan", "nan"),
    ],
)
def test_parameters_are_short_and_whole_numbers_whole(text, short):
    assert short_number(text) == short


def test_the_csv_has_settings_that_are_not_rounded():
    children = [child("kd", "student", "kd", {"final_test/accuracy": 0.5}, alpha=0.123456)]
    analysis = analyze(analyzed(children=children).experiment)
    [line] = csv.DictReader(leaderboard_csv([analysis]).splitlines())
    assert analysis.arms.all[0].setting == "α = 0.1235, T = 2"
    assert line["setting"] == "α = 0.123456, T = 2.0"


@pytest.mark.parametrize(
    ("once", "said"),
    [(100.0, None), (50.0, "1.0 times"), (10.0, "5.1 times"), (5.0, "10 times"), (0.05, "1,024 times")],
)
def test_how_many_times_as_much(once, said):
    """Inside of the training the teacher would have taken 51.2 s."""
    lines = what_it_cost(
        Cost(computed=1, once=once, inside=51.2, rows_seen=1.0, trainings=1, of=1, seconds=0.0, gpu_seconds=None)
    )
    assert lines[1].endswith(f", {said} as much." if said else " 51 s.")


def test_a_training_that_ended_early_saw_fewer_rows():
    """By training.patience after 160 of 800 steps. One whose curve is not in MLflow counts as planned."""
    early = child("early", "student", "kd", steps={"validation/accuracy": 160, "train/loss": 155})
    whole = child("whole", "student", "kd", steps={"validation/accuracy": 800})
    assert [rows_seen(run) for run in (early, whole, child("no curve", "student", "kd"))] == [
        160 * 32,
        800 * 32,
        800 * 32,
    ]


@pytest.mark.parametrize(("value", "text"), [(1.26, "+1.3"), (-0.5, "−0.5"), (0.04, "0.0"), (-0.04, "0.0")])
def test_signs(value, text):
    assert signed(value, 1) == text


@pytest.mark.parametrize(
    ("gain", "interval", "size"),
    [
        (Gain(0.012, 0.0004, 0.024), "+0.04 to +2.4", "+1.2"),
        (Gain(0.012, -0.0004, 0.024), "−0.04 to +2.4", "+1.2"),
        (Gain(0.0, 0.0, 0.0), "0.0 to 0.0", "0.0"),
        (Gain(1e-18, -0.01, 0.01), "−1.0 to +1.0", "0.0"),
        (Gain(0.0004, 0.0001, 0.0007), "+0.01 to +0.1", "+0.04"),
        (Gain(0.0004, -0.002, 0.003), "−0.2 to +0.3", "0.0"),
    ],
)
def test_rounding_does_not_contradict_the_answer(gain, interval, size):
    """In points: an end keeps its sign, and a gain that is shown is not 0."""
    analysis = usual([0.80, 0.81])
    assert (gain_interval(gain, analysis), gain_size(gain, analysis)) == (interval, size)


def test_a_small_gain_that_is_shown_is_not_level():
    """20,000 examples, of which the student is right on 8 more than its teacher, with either seed."""
    right = np.arange(20_000) < 16_000
    better = np.arange(20_000) < 16_008
    arms = [arm("kd", "method", [0.8, 0.8], 0.9), arm("a", "teacher", [0.8], 0.8)]
    for one, scores in zip(arms, ([better, better], [right]), strict=True):
        one.scores["test"] = np.array(scores, dtype=float)
    analysis = analyzed(*arms)
    assert analysis.verdict == "shown"
    assert ": +0.04 points over its teacher, a (95% interval +0.01 to +0.07)" in conclusion(analysis)


# Trainings that have learnt nothing ------------------------------------------------------------------


def test_a_teacher_at_chance_is_not_one_that_is_beaten():
    """Its score is that of the most common label: 52% of 400. The other teachers decide."""
    chance = {"chance": {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.52}}}
    arms = [
        arm("weighted", "method", [0.95, 0.96], 0.95),
        arm("fine-tuning", "finetune", [0.52, 0.53], 0.70),
        arm("a", "teacher", [0.52], 0.5),
    ]
    alone = analyzed(*arms, **chance)
    assert alone.verdict == "nothing learnt"
    assert "none is above chance (52.0%)" in conclusion(alone)
    analysis = analyzed(*arms, arm("b", "teacher", [0.73], 0.76), **chance)
    assert analysis.verdict == "shown"
    assert [t.name for t in analysis.competent_teachers] == ["b"]
    assert {a.name: analysis.at_chance(a) for a in analysis.arms.all} == {
        "weighted": 0,
        "fine-tuning": 1,
        "a": 1,
        "b": 0,
    }
    line = next(line for line in caveats(analysis) if "chance on test" in line)
    assert "fine-tuning (1 of 2 seeds)" in line
    assert "a." in line


def test_a_student_at_chance_has_no_claim():
    arms = [arm("kd", "method", [0.5, 0.5], 0.5), arm("a", "teacher", [0.4], 0.4)]
    analysis = analyzed(*arms, chance={"test": {"accuracy": 0.5}})
    assert analysis.verdict == "nothing learnt"
    assert "the student has learnt nothing" in conclusion(analysis)
    assert analyzed(*arms).verdict != "nothing learnt", "chance is not known"


def test_unequal_chances_are_said():
    """The best method had more settings to choose from than fine-tuning, another learning rate than its teachers, and
    more seeds than a control.
    """
    control = arm("kd from a", "control", [0.7], 0.7)
    analysis = usual([0.80, 0.81], control)
    same = "\n".join(caveats(analysis))
    assert "Not every method has 2 seeds: kd from a 1." in same
    assert "trials" not in same
    assert "with other settings than its teachers" not in same
    for number, name in enumerate(("weighted", "weighted", "weighted", "finetune")):
        method = "weighted" if name == "weighted" else "finetune"
        analysis.experiment.children.append(child(f"t{number}", "trial", method, tags={"raykd.arm": name}))
    for run in analysis.best.runs:
        run.params["training.learning_rate"] = "0.003"
        run.params["training.eval_every"] = "7"
    text = "\n".join(caveats(analysis))
    assert "weighted had 3 trials, more than others (fine-tuning 1, kd from a 0)" in text
    assert "with other settings than its teachers (learning rate 0.003 instead of" in text
    assert "eval every" not in text
    assert text.count(" Fine-tuning could choose from the same training settings.") == 1
    for teacher in analysis.arms.of("teacher"):
        for run in teacher.runs:  # one that was given, which has no training
            run.params.update({key: "" for key in run.params if key.startswith("training.")})
    assert "with other settings than its teachers" not in "\n".join(caveats(analysis))


def test_one_arm_whose_seeds_differ_much_more_is_named():
    """Seeds of 0.9 and 0.1: a standard deviation of 56.6 points, and of the others at most 0.7."""
    calm = usual([0.80, 0.81])
    assert not [line for line in caveats(calm) if "differ far more" in line]
    wild = usual([0.80, 0.81], arm("label_smoothing", "control", [0.9, 0.1], 0.7))
    [line] = [line for line in caveats(wild) if "differ far more" in line]
    assert line.startswith("The seeds of label_smoothing differ far more (standard deviation 56.6 points)")
    assert "(at most 0.7 points)" in line


def test_a_teacher_of_the_same_name_does_not_hide_uneven_seeds():
    wild = usual(
        [0.9, 0.1], arm("label_smoothing", "control", [0.8, 0.81], 0.7), arm("weighted", "teacher", [0.7], 0.7)
    )
    [line] = [line for line in caveats(wild) if "differ far more" in line]
    assert line.startswith("The seeds of weighted differ far more")


def test_only_intervals_that_exist_are_said_to_be_corrected_for():
    def said(*arms: Arm) -> str:
        return next((line for line in how_it_was_made(analyzed(*arms)) if line.startswith("Corrected")), "")

    kd, weighted = arm("kd", "method", [0.8, 0.81], 0.8), arm("weighted", "method", [0.8, 0.82], 0.9)
    tuned, teacher = arm("fine-tuning", "finetune", [0.7, 0.71], 0.7), arm("a", "teacher", [0.7], 0.7)
    smoothed = [arm(f"s{i}", "control", [0.7, 0.72], 0.7) for i in range(2)]
    assert "those of 2 methods over fine-tuning, and those against the best teacher for every" in said(
        kd, weighted, tuned, teacher
    )
    assert "for 2 intervals (Bonferroni): those against the best teacher for every method" in said(
        kd, weighted, teacher
    )
    assert "for 2 intervals (Bonferroni): those of 2 methods and controls over fine-tuning. E" in said(
        *smoothed, tuned, teacher
    )


def test_without_students_the_ensembles_interval_has_the_level_that_is_said():
    """As in a sweep of controls alone, whose own gains are corrected for each other."""
    arms = [arm("a", "teacher", [0.74], 0.74), arm("ensemble", "ensemble", [0.85], 0.85)]
    arms += [arm("fine-tuning", "finetune", [0.70, 0.71], 0.70)]
    controls = [arm(f"s{i}", "control", [0.7, 0.72], 0.7) for i in range(8)]
    many = analyzed(*arms, *controls)
    assert many.level > 0.99
    alone = conclusion(analyzed(*arms[:2])).partition("95% interval ")[2]
    assert alone
    assert conclusion(many).partition("95% interval ")[2] == alone


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([0.81, 0.81], [0.60, 0.60], None),
        ([0.81, 0.81], [0.80, 0.80], "within the noise (95% interval −"),
        ([0.95], [0.60], "another seed could reverse it (95% interval over examples alone +"),
        ([1.0, 1.0], [1.0, 1.0], "within the noise (no interval)"),
    ],
)
def test_how_sure_the_choice_of_the_method_is(first, second, said):
    """One seed each does not show that the first is better, however clear it is on these examples."""
    found = [line for line in caveats(usual(first, arm("kd", "method", second, 0.94))) if "choose the method" in line]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_two_seeds_that_differ_are_not_called_uneven():
    """Of two arms with two seeds each, one's deviation is four times the other's in a third of all cases."""
    analysis = analyzed(
        arm("kd", "method", [0.80, 0.85], 0.9),
        arm("fine-tuning", "finetune", [0.80, 0.805], 0.8),
        arm("a", "teacher", [0.7], 0.7),
    )
    assert not [line for line in caveats(analysis) if "differ far more" in line]


def test_more_steps_and_a_larger_model_are_said():
    """Each of them can explain a gain without distillation."""
    analysis = usual([0.85, 0.86])
    assert not [line for line in caveats(analysis) if "models one after another" in line or "parameters" in line]
    for run in analysis.best.runs:
        run.params.update({"method.generations": "3", "lora.r": "8", "lora.save": "adapter"})
    teachers = analysis.arms.of("teacher")
    for teacher in teachers:
        teacher.runs[0].params.update({"lora.r": "", "lora.save": ""})
    analysis.experiment.serving.update({run.name: {"parameters": 2000} for run in analysis.best.runs})
    analysis.experiment.serving.update({t.name: {"parameters": 2000 - i} for i, t in enumerate(teachers)})
    text = "\n".join(caveats(analysis))
    assert "trained 3 models one after another" in text
    assert len(teachers) == 2
    assert f"The student has 2,000 parameters, more than {teachers[1].name}, so its gain over it" in text
    assert "(LoRA's r 8 instead of none)" in text
    assert "precision" not in text
    for run in [*analysis.best.runs, *analysis.finetune.runs]:
        run.tags["raykd.dtype"] = "float32"
    assert "precision" not in "\n".join(caveats(analysis))
    analysis.finetune.runs[0].tags["raykd.dtype"] = "bfloat16"
    assert "in the same precision (bfloat16 and float32)" in "\n".join(caveats(analysis))


@pytest.mark.parametrize(
    ("alpha", "teacher", "what"),
    [
        (0.0, "None", "distillation."),
        (0.5, "a", "several teachers instead of one."),
        (0.5, "None", "the methods that were searched instead of plain KD."),
    ],
)
def test_a_better_control(alpha, teacher, what):
    control = arm("other", "control", [0.84, 0.84], 0.96)
    for run in control.runs:
        run.params.update({"method.alpha": str(alpha), "method.teacher": teacher})
    better = usual([0.85, 0.86], control)
    [line] = [line for line in caveats(better) if line.startswith("A control, other,")]
    assert line.endswith(f"do not speak for {what}")
    for run in better.finetune.runs:
        run.metrics["final_validation/accuracy"] = 0.955
    [line] = [line for line in caveats(better) if line.startswith("A control")]
    assert line.endswith("do not speak for distillation."), "fine-tuning is better, too"


def test_share_kept_needs_a_gain_of_the_ensemble_that_is_shown():
    shown = {row.arm.name: row.kept for row in leaderboard(usual([0.80, 0.81]))}
    assert shown["weighted"] == pytest.approx(0.100 / 0.145, rel=0.02)
    close = analyzed(
        arm("weighted", "method", [0.72, 0.73], 0.8),
        arm("fine-tuning", "finetune", [0.70, 0.71], 0.70),
        arm("ensemble", "ensemble", [0.71], 0.85),
    )
    assert all(math.isnan(row.kept) for row in leaderboard(close))


def test_the_best_method_against_the_others():
    """Both gains of one family: 2 other arms, counted for each of the 2 methods that could have been chosen."""
    more = arm("kd", "method", [0.71, 0.72], 0.8), arm("label_smoothing", "control", [0.85, 0.85], 0.7)
    analysis = usual([0.85, 0.86], *more)
    gains, level = over_others(analysis)
    assert [other.name for other, _ in gains] == ["kd", "label_smoothing"]
    assert level == pytest.approx(1 - 0.05 / 4)
    assert gains[0][1].value == pytest.approx(0.14, abs=1e-9)
    assert [gain.shown for _, gain in gains] == [1, 0]
    assert over_others(usual([0.85, 0.86]))[0] == []


def test_counts_and_thresholds_are_no_scores():
    """As question answering logs them beside its scores, which are in percent."""
    analysis = usual([0.85, 0.86])
    analysis.experiment.percent = True
    for run in analysis.experiment.children:
        more = {
            "exact": 71.25,
            "HasAns_exact": 60.0,
            "total": 10570.0,
            "no_answer_threshold": 0.4,
            "best_f1_thresh": 0.1,
        }
        run.metrics.update({f"final_test/{name}": value for name, value in more.items()} | {"final_test/nll": 1.5})
    table = more_scores(analysis, leaderboard(analysis))
    assert table["columns"] == ["HasAns exact", "Exact", "NLL"]
    assert table["rows"][0]["cells"] == [("HasAns exact", "60.0%"), ("Exact", "71.2%"), ("NLL", "1.500")]
