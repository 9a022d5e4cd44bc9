"""What a training is found by: everything that changes its result, and nothing that does not."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import Field, create_model

from raykd.config.methods import Method
from raykd.config.schema import ModelConfig, TaskConfig, TrainingConfig
from raykd.data.encoding import Encoded
from raykd.plan.job import Job, ScoredSplit


def encoded(digest: str) -> Encoded:
    return Encoded(Path("/nowhere") / digest, digest)


JOB = Job(
    name="student seed 0",
    key="student",
    store=Path("/nowhere"),
    task=TaskConfig(type="text-classification"),
    label_names=("negative", "positive"),
    model=ModelConfig(config={"model_type": "bert"}),
    model_digest="weights",
    seed=0,
    training=TrainingConfig(epochs=2, learning_rate=1e-3),
    steps=100,
    method=Method(type="weighted", alpha=0.7),
    train=(encoded("train"),),
    validation=ScoredSplit(encoded("validation"), Path("/nowhere")),
    test=ScoredSplit(encoded("test"), Path("/nowhere")),
)


@pytest.mark.parametrize("section", ["method", "task", "training"])
def test_a_new_field_with_a_neutral_default_finds_the_old_result(section):
    settings = getattr(JOB, section)
    grown = create_model("Grown", __base__=type(settings), new_field=(float, Field(0.0)))
    given = settings.model_dump(exclude_unset=True)
    same = dataclasses.replace(JOB, **{section: grown.model_validate(given)})
    other = dataclasses.replace(JOB, **{section: grown.model_validate(given | {"new_field": 0.5})})
    assert same.fingerprint == JOB.fingerprint
    assert other.fingerprint != JOB.fingerprint


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "alpha", 0.5),
        ("method", "W", 0.0),
        ("method", "temperature", 1.0),
        ("task", "max_length", 64),
        ("training", "learning_rate", 1e-4),
        ("training", "weight_decay", 0.0),
        ("training", "precision", "bf16"),
    ],
)
def test_a_setting_that_changes_the_result_changes_the_fingerprint(section, key, value):
    settings = getattr(JOB, section)
    changed = type(settings).model_validate(settings.model_dump(exclude_unset=True) | {key: value})
    assert dataclasses.replace(JOB, **{section: changed}).fingerprint != JOB.fingerprint


def test_a_setting_spelled_out_at_its_default_changes_nothing():
    training = TrainingConfig(epochs=2, learning_rate=1e-3, warmup=0.06, decay="linear")
    assert dataclasses.replace(JOB, training=training).fingerprint == JOB.fingerprint


def test_a_default_that_changes_is_noticed():
    """Settings at their defaults are not hashed: a default cannot change without a new `ARITHMETIC`."""
    assert TrainingConfig(epochs=1).model_dump(exclude={"epochs", "steps"}) == {
        "batch_size": 32, "accumulation": 1, "learning_rate": 5e-5, "warmup": 0.06, "decay": "linear",
        "weight_decay": 0.01, "max_grad_norm": 1.0, "precision": "auto", "eval_every": None, "select": None,
        "patience": None, "group_by_length": True, "gradient_checkpointing": False, "compile": False,
    }  # fmt: skip
    assert Method(type="finetune").model_dump(exclude={"type", "teacher"}) == {
        "alpha": 0.0, "temperature": 1.0, "scale_by_t2": True, "schedule": "constant", "floor": 0.0, "pool": "logits",
        "divergence": "forward_kl", "beta": 0.5, "weighting": "mean", "weight_temperature": 1.0,
        "W": 1.0, "all_wrong": "mean", "correct_by": "decision", "epsilon": 0.0,
        "generations": 1, "average_generations": False,
    }  # fmt: skip


@pytest.mark.parametrize(("weighting", "same"), [("mean", True), ("correctness", False)])
def test_when_a_value_is_right_matters_only_to_weights(weighting, same):
    job = dataclasses.replace(JOB, method=Method(type="kd", weighting=weighting))
    found = {
        dataclasses.replace(job, task=TaskConfig(type="regression", tolerance=tolerance)).fingerprint
        for tolerance in (0.4, 0.5)
    }
    assert (len(found) == 1) == same
