"""Regression: its arithmetic by hand, its metrics against scipy's, and what has no meaning for values."""

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import pearsonr, spearmanr
from tiny import electra, save_tokenizer, similarities_job, write_similarities
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import DataConfig, ModelConfig, TaskConfig
from raykd.data.loading import load_splits
from raykd.data.values import read_values
from raykd.distillation import value_loss, value_target, value_weights
from raykd.distillation.compact import compact_logits
from raykd.experiment.teacher_doubts import scale_misfit
from raykd.plan.prepare import prepare
from raykd.predictions.predictor import Predictor
from raykd.search.space import Space
from raykd.tasks import Batch, make_task
from raykd.training.agreement import Counts
from raykd.training.loader import MicroBatch
from raykd.training.value_objective import ValueObjective

TASK = make_task(TaskConfig(type="regression", tolerance=0.5))
NAN = math.nan


def logits(values):
    """As they are stored: fp16, the larger of (0, v) subtracted."""
    values = torch.tensor(values)
    return compact_logits(torch.stack([torch.zeros_like(values), values], -1))


# Three teachers, three rows. Two teachers are wrong on the first row, all on the second; the last one has no label.
TEACHERS = logits([[[3.0], [-1.0], [4.0]], [[1.0], [-2.0], [2.0]], [[2.25], [-1.5], [0.0]]])
LABELS = torch.tensor([[2.0], [-9.0], [NAN]])


def test_values_weights_and_target_by_hand():
    mean = value_weights(TEACHERS, LABELS)
    assert mean.weights.eq(1).all()
    assert mean.distill.all()
    assert value_target(TEACHERS, mean.weights)[:, 0].tolist() == pytest.approx([6.25 / 3, -1.5, 2.0])
    found = value_weights(TEACHERS, LABELS, weighting="correctness", W=0.5, tolerance=0.5)
    # Two of three wrong: 0.5 each, and 1 + 2 * 0.5 / 1 for the right one. All wrong, or no label: 1.
    assert found.weights[:, :, 0].T.tolist() == [[0.5, 0.5, 2.0], [1, 1, 1], [1, 1, 1]]
    assert found.distill.all()
    assert value_target(TEACHERS, found.weights)[0].item() == pytest.approx((1.5 + 0.5 + 4.5) / 3)
    skip = value_weights(TEACHERS, LABELS, weighting="correctness", W=0.5, tolerance=0.5, all_wrong="skip")
    assert skip.distill[:, 0].tolist() == [True, False, True]
    exact = value_weights(TEACHERS, LABELS, weighting="correctness", W=0.5, tolerance=0.25)
    assert exact.weights[2, 0, 0] == 2, "an error of exactly the tolerance is right"
    with pytest.raises(ValueError, match="tolerance"):
        value_weights(TEACHERS, LABELS, weighting="correctness")


def test_loss_by_hand_and_its_gradient():
    values = torch.tensor([[1.0], [0.0], [5.0]], requires_grad=True)
    student = torch.stack([torch.zeros_like(values), values], -1)
    target = torch.tensor([[2.0], [-1.0], [2.0]])
    distill = torch.tensor([[True], [False], [True]])
    found = value_loss(student, target, LABELS, alpha=0.25, distill=distill)
    assert found.distillation.item() == pytest.approx((1 + 9) / 2)
    assert found.label.item() == pytest.approx((1 + 81) / 2)
    assert found.loss.item() == pytest.approx(0.25 * 5 + 0.75 * 41)
    found.loss.backward()
    assert values.grad[:, 0].tolist() == pytest.approx(
        [0.25 * 2 * -1 / 2 + 0.75 * 2 * -1 / 2, 0.75 * 2 * 9 / 2, 0.25 * 2 * 3 / 2]
    )
    unlabelled = value_loss(student, None, torch.full((3, 1), NAN), alpha=0)
    assert unlabelled.loss.item() == 0
    assert unlabelled.loss.requires_grad


def test_label_term_is_that_of_transformers():
    config = AutoConfig.for_model(**electra(), num_labels=1, problem_type="regression")
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids, gold = torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3]]), torch.tensor([[1.5], [-0.5]])
    theirs = model(input_ids=ids, labels=gold[:, 0])
    student = TASK.decisions(theirs, Batch({}, gold))
    torch.testing.assert_close(value_loss(student, None, gold, alpha=0).loss, theirs.loss)


@pytest.mark.parametrize(
    "method", [Method(type="weighted", W=0.2, temperature=1), Method(type="kd", temperature=1), Method(type="finetune")]
)
def test_losses_of_micro_batches_add_up(method):
    objective = ValueObjective(method, 4, TASK.settings.tolerance)
    student, distils = logits([[0.5], [-2.0], [1.0]]).float(), method.distils

    def targets(rows):
        batch = MicroBatch(np.arange(3)[rows], Batch({}, LABELS[rows]), TEACHERS[:, rows] if distils else None)
        return objective.targets(batch, torch.device("cpu"))

    shares = [slice(0, 1), slice(1, 3)]
    whole, parts = targets(slice(None)), [targets(rows) for rows in shares]
    counts = sum((part.counts for part in parts), Counts.zero())
    torch.testing.assert_close(counts.to_tensor(), whole.counts.to_tensor())
    assert (int(counts.labelled), int(counts.distilled)) == (2, 3 if distils else 0)
    assert int(counts.changed) == (1 if method.weighting == "correctness" else 0)
    alpha = objective.alpha(0)
    losses = [objective.loss(student[rows], part, counts, alpha).loss for rows, part in zip(shares, parts, strict=True)]
    torch.testing.assert_close(sum(losses), objective.loss(student, whole, counts, alpha).loss)


def evaluated(predicted, gold):
    rows = Dataset.from_dict({"label": gold})
    return TASK.evaluate(TASK.summarize([row.numpy() for row in logits([[v] for v in predicted])], {}), rows, rows)


@pytest.mark.parametrize("decimals", [0, 3])
def test_metrics_are_those_of_scipy(decimals):
    rng = np.random.default_rng(0)
    gold = np.round(rng.normal(size=50), decimals)
    predicted = np.round(gold + rng.normal(size=50), decimals).astype(np.float16)
    found = evaluated(predicted.tolist(), gold.tolist())
    exact = predicted.astype(float)
    assert found.metrics["pearson"] == pytest.approx(pearsonr(exact, gold).statistic, abs=1e-12)
    assert found.metrics["spearman"] == pytest.approx(spearmanr(exact, gold).statistic, abs=1e-12)
    assert found.metrics["mse"] == pytest.approx(((exact - gold) ** 2).mean(), abs=1e-12)
    assert found.scores.mean() == pytest.approx(found.metrics["pearson"], abs=1e-12)
    assert [row["score"] for row in found.predictions] == found.scores.tolist()
    assert found.predictions[0]["prediction"] == exact[0]


def test_scores_spread_as_the_correlation_over_draws_of_rows():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=400)
    predicted = gold + rng.normal(size=400)
    draws = [rng.integers(0, 400, 400) for _ in range(200)]
    drawn = [evaluated(predicted[d].tolist(), gold[d].tolist()).metrics["pearson"] for d in draws]
    assert evaluated(predicted.tolist(), gold.tolist()).scores.std() / 20 == pytest.approx(np.std(drawn), rel=0.15)


def test_one_value_for_all_rows_is_chance():
    found = evaluated([2.5, 2.5, 2.5], [1.0, 2.0, 4.5])
    assert found.metrics["pearson"] == found.metrics["spearman"] == 0 == TASK.chance(None)
    assert found.metrics["mse"] == np.var([1, 2, 4.5])
    assert not found.scores.any()


def test_a_teacher_on_another_scale_is_warned_of():
    gold = np.linspace(0, 5, 20)

    def warned(values):
        return scale_misfit([{"prediction": v, "label": y} for v, y in zip(values, gold, strict=True)])

    assert "mean 0.5," in warned(gold / 5)
    assert "mean 2.5," in warned(gold / 5)
    assert not warned(gold * 0.8)
    assert not warned(np.full(20, 9.0)), "it has learnt nothing, which is said elsewhere"


@pytest.mark.parametrize(
    ("values", "key", "parts"),
    [
        ({"method.temperature": 2}, "method.temperature", ["2"]),
        ({"method.divergence": "jsd"}, "method.divergence", ["jsd"]),
        ({"method.pool": "probabilities"}, "method.pool", ["probabilities"]),
        ({"method.weighting": "likelihood"}, "method.weighting", ["likelihood", "correctness"]),
        ({"method.type": "label_smoothing"}, "method.type", ["label_smoothing"]),
        ({"method.scale_by_t2": False}, "method.scale_by_t2", ["False"]),
        ({"method.type": "weighted", "task.tolerance": None}, "task.tolerance", ["None", "method.weighting"]),
        ({"task.labels": ["a", "b"]}, "task.labels", ["classes"]),
        ({"search.space": {"method.temperature": [1, 2]}}, "search.space.method.temperature", ["2"]),
        ({"search.space": {"method.weighting": ["correctness", "entropy"]}, "method.type": "weighted"},
         "search.space.method.weighting", ["entropy"]),
        ({"search.space": {"method.type": ["kd", "label_smoothing"]}}, "method.type", ["label_smoothing"]),
        ({"search.space": {"method.epsilon": [0.1]}}, "search.space.method.epsilon", ["no method"]),
    ],
)  # fmt: skip
def test_what_has_no_meaning_for_values_is_refused(tmp_path, values, key, parts):
    with pytest.raises(ConfigError) as error:
        Space(build(override(similarities_job(tmp_path), values)))
    assert error.value.key == key
    assert all(part in str(error.value) for part in parts)


def test_only_regression_has_a_tolerance():
    with pytest.raises(ValueError, match="tolerance"):
        TaskConfig(type="text-classification", tolerance=1)


def test_presets_have_no_temperature_and_sweeps_no_label_smoothing(tmp_path):
    tree = similarities_job(tmp_path)
    for method in (None, "kd", {"type": "weighted", "W": 0.5}):
        config = build(tree | ({"method": method} if method else {}))
        assert config.method.temperature == 1
        assert "temperature" not in config.method_label
        assert build(config.model_dump()) == config, "as it is written to config.yaml"
    space = {"method.type": ["kd", "annealing", "weighted", "born_again"], "method.W": {"uniform": [0, 1]}}
    arms = Space(build(override(tree, {"search.space": space}))).arms
    assert [a.name for a in arms if a.control] == ["finetune", "kd from a", "kd from b"]
    assert {a.name for a in arms if not a.control} == set(space["method.type"])


def read(labels, feature=None, others=(0.0, 1.0)):
    """The labels of train as they are read."""
    features = Features({"text": Value("string"), "label": feature}) if feature else None
    raw = {"train": Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)}
    raw["test"] = Dataset.from_dict({"text": ["x", "y"], "label": [*others]})
    return read_values(raw, TASK, DataConfig(source="x", columns={"label": "stars"}))["train"]["label"][:]


def test_labels_are_numbers_in_any_form():
    assert read([1, 2, 3]) == [1.0, 2.0, 3.0]
    assert read(["1.5", " 2", "-1e-1"]) == [1.5, 2.0, -0.1]
    assert read([0.5, 2.5], Value("float32")) == [0.5, 2.5]


@pytest.mark.parametrize(
    ("labels", "feature", "key", "parts"),
    [
        ([1.0, None, 2.0], None, "data.train", ["row 1", "None"]),
        (["1.5", "good"], None, "data.train", ["row 1", "'good'"]),
        ([1.0, math.inf], None, "data.train", ["row 1", "inf"]),
        ([True, False], None, "data.columns.label", ["stars", "bool"]),
        ([0, 1], ClassLabel(names=["a", "b"]), "data.columns.label", ["stars", "ClassLabel"]),
        ([3.0, 3.0], None, "data.train", ["all 2 rows", "3"]),
        ([2001.0, 2002.0, 2003.0], None, "data.columns.label", ["2003", "0.816", "standard deviation"]),
        ([0.0, 1e6], None, "data.columns.label", ["1e+06", "30000"]),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used_are_refused(labels, feature, key, parts):
    with pytest.raises(ConfigError) as error:
        read(labels, feature)
    assert error.value.key == key
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_hidden_labels_of_a_split_are_refused():
    with pytest.raises(ConfigError, match="data.test"):
        read([1.0, 2.0], others=(-1.0, -1.0))


def test_numbers_that_are_equal_are_the_same_data(tmp_path):
    """Whether labels are written as 1 or 1.0 or "1" does not change what was computed with them."""
    digests = set()
    for kind in (int, float, str):
        folder = tmp_path / kind.__name__
        write_similarities(folder / "source")
        rows = Dataset.from_parquet(str(folder / "source" / "train.parquet"))
        rows = rows.remove_columns("score").add_column("score", [kind(i % 5) for i in range(len(rows))])
        job = similarities_job(folder)
        rows.to_parquet(folder / "data" / "train.parquet")
        digests.add(load_splits(build(job), make_task(TaskConfig(type="regression")))["train"].digest)
    assert len(digests) == 1


def test_given_teachers_need_one_output(tmp_path):
    tree = similarities_job(tmp_path)
    for outputs, problem in ((3, None), (1, None), (1, "multi_label_classification")):
        folder = tmp_path / f"model-{outputs}-{problem}"
        config = AutoConfig.for_model(**electra(), num_labels=outputs, problem_type=problem)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        save_tokenizer(folder)
        teacher = {"name": "a", "model": str(folder)}
        config = build(tree | {"teachers": [teacher, tree["teachers"][1]], "student": {"model": str(folder)}})
        if (outputs, problem) == (1, None):
            prepared = prepare(config)
            assert prepared.student.model.config.problem_type == "regression"
            assert prepared.student.model.config.num_labels == 1
            continue
        with pytest.raises(ConfigError) as error:
            prepare(config)
        assert error.value.key == "teachers.a.model"
        assert (problem or "3 outputs") in str(error.value)


def test_a_model_with_one_output_predicts_values(tmp_path):
    config = AutoConfig.for_model(**electra(), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    predictor = Predictor(ModelConfig(pretrained=str(tmp_path)))
    assert predictor.task.problem_type == "regression"
    rows = predictor.inputs(Dataset.from_dict({"first": ["good film", "bad"]}), {"text": "first"})
    [(_, found)] = predictor.predict(rows)
    assert [row.keys() for row in found] == [{"prediction"}] * 2
    assert all(isinstance(row["prediction"], float) for row in found)
