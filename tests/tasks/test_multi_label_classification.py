"""Multi-label classification: the decisions, the forms of labels, and the metrics against scikit-learn's."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from scored import evaluate
from sklearn.metrics import average_precision_score, f1_score, log_loss
from tiny import emotions_job

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import DataConfig, TaskConfig
from raykd.data.choices import join_columns, single_columns
from raykd.data.labels import number_labels
from raykd.data.split import Split
from raykd.distillation import compact_logits, distillation_loss, ensemble_target, teacher_weights
from raykd.plan.prepare import check_metrics
from raykd.tasks import NO_LABEL, Batch, make_task
from raykd.tasks.multi_label_classification import best_threshold, mean_average_precision

NAMES = ["anger", "joy", "loud"]


def task(labels=NAMES):
    return make_task(TaskConfig(type="multi-label-classification"), labels)


def numbered(lists, kind=None, labels=(), **other):
    """The label names and the numbers of each row, from a column of lists."""
    made = task(labels)
    features = kind and Features({"text": Value("string"), "labels": kind})
    rows = {n: Dataset.from_dict({"text": ["a"] * len(part), "labels": part}, features=features)
            for n, part in {"train": lists, **other}.items()}  # fmt: skip
    found = number_labels(rows, made, DataConfig(source="x"))
    return made.label_names, [sorted(row) for row in found["train"]["labels"][:]]


def test_the_loss_is_the_binary_cross_entropy_of_each_label():
    z = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.25, 4.0]])
    encoded = task().encoded_labels({"text": ["a", "b"], "labels": [[0, 2], []]}, True)
    assert encoded == [[1, 0, 1], [0, 0, 0]]
    labels = torch.tensor(encoded)
    logits = task().decisions(type("Output", (), {"logits": z}), Batch({}, labels))
    found = distillation_loss(logits, None, labels, alpha=0.0, temperature=1.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, labels.float())  # as transformers' own models
    torch.testing.assert_close(found.loss, expected)
    assert task().encoded_labels({"text": ["a"]}, False) == [[NO_LABEL] * 3]


def test_the_target_is_the_sigmoid_of_the_mean_logit_over_t():
    z = torch.tensor([[[3.0, -2.0, 0.5]], [[1.0, -4.0, -0.5]]])  # two teachers, one row
    logits = torch.stack([compact_logits(torch.stack([torch.zeros_like(t), t], -1)) for t in z])
    weights, _ = teacher_weights(logits, torch.zeros(1, 3, dtype=torch.long))
    target = ensemble_target(logits, weights, 2.0)
    torch.testing.assert_close(target[0, :, 1], torch.sigmoid(torch.tensor([2.0, -3.0, 0.0]) / 2))


@pytest.mark.parametrize(
    ("by", "first", "second"), [("decision", [1, 0.5, 1.5], [1, 1.5, 0.5]), ("example", [1, 1, 1], [1, 1, 1])]
)
def test_a_teacher_is_right_by_label_or_by_row(by, first, second):
    """Both are right on the first label; the second teacher alone on the second, and the first alone on the third."""
    z = torch.tensor([[[3.0, 2.0, 0.5]], [[1.0, -4.0, -0.5]]])
    logits = torch.stack([torch.zeros_like(z), z], -1)
    labels = torch.tensor([[1, 0, 1]])
    found = teacher_weights(logits, labels, weighting="correctness", W=0.5, correct_by=by).weights[:, 0]
    assert found.tolist() == [first, second]


def test_labels_are_names_or_numbers_or_class_labels():
    assert numbered([["joy"], [], ["loud", "anger"]]) == (("anger", "joy", "loud"), [[1], [], [0, 2]])
    assert numbered([["joy"], ["loud", "anger"]], labels=["loud", "joy", "anger"])[1] == [[1], [0, 2]]
    assert numbered([[1], [], [2, 0]]) == (("0", "1", "2"), [[1], [], [0, 2]])
    kind = List(ClassLabel(names=["x", "y", "z"]))
    assert numbered([[2], [0, 1]], kind) == (("x", "y", "z"), [[2], [0, 1]])


@pytest.mark.parametrize("kind", [Value("int64"), Value("float32"), Value("bool")])
def test_vectors_of_0_and_1_are_the_labels_that_have_1(kind):
    assert numbered([[0, 1, 0], [1, 0, 1]], List(kind), NAMES) == (tuple(NAMES), [[1], [0, 2]])
    assert numbered([[0, 1], [1, 0]], List(kind), test=[[0, 0]]) == (("0", "1"), [[1], [0]])


@pytest.mark.parametrize("odd", [[], [0, 1]])
@pytest.mark.parametrize("kind", [Value("int64"), Value("bool")])
@pytest.mark.parametrize("labels", [(), NAMES])
def test_a_vector_of_another_length_is_refused(odd, kind, labels):
    """The other rows' vectors would be read as lists of the classes 0 and 1."""
    with pytest.raises(ConfigError) as refused:
        numbered([[0, 1, 0], [1, 1, 0]], List(kind), labels, test=[[0, 0, 1], odd])
    assert (refused.value.key, refused.value.value) == ("data.test", "row 1")


def test_a_label_twice_is_that_label_but_of_0_and_1_a_vector():
    for lists, row in (([["1", "0", "0"], ["1"]], 1), ([["0", "1"], ["1", "1"]], 1)):
        with pytest.raises(ConfigError) as refused:
            numbered(lists)
        assert (refused.value.key, refused.value.value) == ("data.train", f"row {row}")
    assert numbered([["joy", "joy"], ["anger"]])[0] == ("anger", "joy")
    assert numbered([[2], [3, 0, 3]])[0] == ("0", "2", "3")
    assert numbered([[0], [0, 1], []]) == (("0", "1"), [[0], [0, 1], []])


@pytest.mark.parametrize(
    ("lists", "test", "labels"),
    [
        ([["joy", "anger"], ["loud"]], [["joy", "loud"], [], ["bored", "bored"], ["bored"]], ()),  # a new name
        ([[5, 7], [9]], [[5], [], [5, 30], [30, 40]], ()),  # a new number
        ([["joy", "anger"], ["loud"]], [["joy"], [], ["loud", None, None], [None]], NAMES),
    ],
)
def test_rows_are_counted_and_not_their_labels(lists, test, labels):
    with pytest.raises(ConfigError, match=r"2 rows .* row 2,") as refused:
        numbered(lists, labels=labels, test=test)
    assert refused.value.key == "data.test"


def test_labels_that_fit_no_names_are_refused():
    with pytest.raises(ConfigError, match=r"task\.labels.*3.*2"):
        numbered([[0, 1], [1, 1]], labels=NAMES)
    with pytest.raises(ConfigError, match="bored"):
        numbered([["joy"], ["bored"]], labels=NAMES)
    with pytest.raises(ConfigError, match="lists of labels"):
        numbered(["joy", "loud"])
    with pytest.raises(ConfigError, match="row 1"):
        task().check_rows(Dataset.from_dict({"labels": [[0], [3]]}), "test", True)
    assert task().unmeasurable(Dataset.from_dict({"labels": [[], []]})).keys() == {
        "macro_f1", "micro_f1", "mean_average_precision",
    }  # fmt: skip


def test_validation_without_a_label_is_refused_also_for_the_default_metric(tmp_path):
    config, rows = build(emotions_job(tmp_path)), Dataset.from_dict({"labels": [[], []]})
    split = Split("validation", rows, np.zeros((2, 16), np.uint8), "", True)
    with pytest.raises(ConfigError) as refused:
        check_metrics(config, task(), split)
    assert refused.value.key == "student.training.select"
    assert str(refused.value.value) == f"{task().primary_metric} (the default)"
    for changes in (
        {"training.select": "nll"},
        {"student.training.select": "nll", "teachers.*.recipe.training.select": "nll"},
        {"search.space": {"training.select": ["nll"]}, "teachers.*.recipe.training.select": "nll"},
    ):
        check_metrics(build(override(emotions_job(tmp_path), changes)), task(), split)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    gold = rng.random((40, 5)) < rng.random(5) * 0.5
    gold[:, 4] &= seed > 2  # sometimes a label that no row has
    z = np.round(rng.normal(size=gold.shape) * 2, seed % 3)  # with equal logits
    made = task([*"abcde"])
    lists = [np.flatnonzero(row).tolist() for row in gold]
    rows = Dataset.from_dict({"labels": gold.astype(int).tolist()}), Dataset.from_dict({"labels": lists})
    logits = [compact_logits(torch.tensor(np.stack([0 * row, row], -1))).numpy() for row in z]
    z = np.stack([row[:, 1].astype(float) - row[:, 0] for row in logits])
    found = evaluate(made, logits, *rows)
    occurs = gold.any(0)  # the same labels for every model, whatever it predicts
    every = [f1_score(gold[:, occurs], (z >= value)[:, occurs], average="macro") for value in np.unique(z)]
    assert found.metrics["macro_f1"] == pytest.approx(max(every), abs=1e-12), "the best threshold"
    threshold = found.calibration["threshold"]
    assert found.metrics["micro_f1"] == pytest.approx(f1_score(gold, z >= threshold, average="micro"), abs=1e-12)
    expected = average_precision_score(gold[:, occurs], z[:, occurs], average="macro")
    assert found.metrics["mean_average_precision"] == pytest.approx(expected, abs=1e-12)
    assert found.metrics["nll"] == pytest.approx(log_loss(gold.ravel(), 1 / (1 + np.exp(-z.ravel()))), abs=1e-9)
    assert found.scores.mean() == pytest.approx(found.metrics["macro_f1"], abs=1e-12)
    assert [row["score"] for row in found.predictions] == found.scores.tolist()
    given = evaluate(made, logits, *rows, calibration={"threshold": 100.0})
    assert given.metrics["macro_f1"] == given.metrics["micro_f1"] == 0, "test uses the threshold of validation"
    assert given.calibration == {"threshold": 100.0}


def test_scores_spread_as_the_macro_f1_over_draws_of_rows():
    rng = np.random.default_rng(0)
    gold = rng.random((400, 3)) < [0.5, 0.2, 0.1]
    z = np.where(gold, 1.0, -1.0) + rng.normal(size=gold.shape)

    def scored(chosen):
        lists = [np.flatnonzero(row).tolist() for row in gold[chosen]]
        encoded, raw = Dataset.from_dict({"labels": lists}), Dataset.from_dict({"labels": lists})
        return task().evaluate(list(z[chosen]), encoded, raw, {"threshold": 0.0})

    drawn = [scored(rng.integers(0, 400, 400)).metrics["macro_f1"] for _ in range(100)]
    assert scored(np.arange(400)).scores.std() / 20 == pytest.approx(np.std(drawn), rel=0.25)


def test_without_any_label_the_metrics_are_0():
    none, z = np.zeros((2, 3), bool), np.array([[1.0, 2.0, 3.0], [0.0, -1.0, -2.0]])
    assert mean_average_precision(none, z) == 0
    assert np.isfinite(best_threshold(none, z))


def test_rows_without_labels_are_predicted_by_the_threshold_of_validation():
    logits = [np.array([[0.0, 2.0], [0.0, 0.5], [0.0, -1.0]])]
    [found] = task().predictions(logits, None, None, {"threshold": 1.0})
    assert found["prediction"] == ["anger"]
    assert list(found["probabilities"].values()) == pytest.approx(1 / (1 + np.exp([-2.0, -0.5, 1.0])))
    assert task().predictions(logits, None, None, {})[0]["prediction"] == ["anger", "joy"]


@pytest.mark.parametrize("value", [1, 1.0, True, -1])
def test_a_column_of_0_and_1_for_each_label(value):
    made, data = make_task(TaskConfig(type="multi-label-classification")), {"labels": ["b", "a"]}
    rows = Dataset.from_dict({"text": ["x", "y", "z"], "a": [type(value)(0), value, value], "b": [0, 0, 1]})
    config = DataConfig(source="x", columns=data)
    if value == -1:  # a hidden label
        with pytest.raises(ConfigError, match=r"data.test = -1.*column a, 2 rows .*row 1"):
            join_columns(rows, config, made, "test", labelled=True)
        return
    joined = join_columns(rows, config, made, "train", labelled=True)
    assert joined["labels"][:] == [[], ["a"], ["b", "a"]]
    assert made.label_names == ("b", "a")
    assert number_labels({"train": joined}, made, single_columns(config))["train"]["labels"][:] == [[], [1], [0, 1]]
