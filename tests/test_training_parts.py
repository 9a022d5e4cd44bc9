"""Batches, optimizer and predictions: the parts that the loop is made of."""

from itertools import islice

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.common.hashing import digest, fingerprint
from raykd.config.schema import TrainingConfig
from raykd.data.batches import batch_order, first_epoch
from raykd.models.batching import next_batch
from raykd.training.optimization import learning_rate, make_optimizer, not_finite


@settings(max_examples=30)
@given(rows=st.integers(1, 60), size=st.integers(1, 16), group=st.booleans(), seed=st.integers(0, 5))
def test_every_row_occurs_once_per_epoch(rows, size, group, seed):
    lengths = np.random.default_rng(seed).integers(1, 30, rows)
    epochs = 16  # so that at least one batch is full
    seen = np.concatenate(list(islice(batch_order(lengths, size, seed, group), epochs * rows // size)))
    counts = np.bincount(seen, minlength=rows)
    # Rows that fill no batch open the next epoch, so nobody is ever two epochs behind another.
    assert counts.max() - counts.min() <= 2
    assert counts.sum() == epochs * rows // size * size


def test_order_depends_on_the_seed_and_changes_every_epoch():
    lengths = np.ones(40, int)
    first = list(islice(batch_order(lengths, 8, 1, True), 10))
    np.testing.assert_array_equal(first, list(islice(batch_order(lengths, 8, 1, True), 10)))
    assert not np.array_equal(first, list(islice(batch_order(lengths, 8, 2, True), 10)))
    assert not np.array_equal(first[:5], first[5:])


def test_grouping_by_length_saves_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)

    def padding(group: bool) -> int:
        batches = islice(batch_order(lengths, 16, 0, group), 125)
        return sum(int((lengths[b].max() - lengths[b]).sum()) for b in batches)

    assert padding(True) < padding(False) / 5


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_step_that_is_not_finite(bad):
    """AdamW skips a step where it is 1."""
    fine, bad, infinite = (torch.tensor(x, dtype=torch.float64) for x in (-1e300, bad, float("inf")))
    assert not_finite(fine, fine.abs()).tolist() == 0.0
    assert not_finite(fine, fine.abs()).dtype == torch.float32
    for loss, norm in ((bad, fine.abs()), (fine, bad), (bad, infinite)):
        assert not_finite(loss, norm).tolist() == 1.0


def test_batches_of_a_pass_keep_the_budget_and_every_row():
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        batches.append(next_batch(order, lengths, start, 100, 128))
        start += len(batches[-1])
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(b) * lengths[b].max() <= 100 for b in batches)
    assert len(batches) < 150, "they are filled"
    assert len(next_batch(np.array([0, 1]), np.array([500, 3]), 0, 100, 128)) == 1, "a long row goes alone"
    assert len(next_batch(order, np.ones(300, int), 0, 10**6, 7)) == 7


@settings(max_examples=30)
@given(rows=st.integers(1, 60), size=st.integers(1, 16), group=st.booleans())
def test_first_epoch_is_the_order_of_first_need(rows, size, group):
    lengths = np.random.default_rng(0).integers(1, 30, rows)
    order = first_epoch(lengths, size, 3, group)
    assert sorted(order) == list(range(rows)), "every row once"
    needed = np.concatenate(list(islice(batch_order(lengths, size, 3, group), 1)))
    assert list(order[: len(set(needed))]) == list(dict.fromkeys(needed)), "the first step's rows come first"


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_learning_rate_is_transformers(decay):
    training = TrainingConfig(steps=20, learning_rate=3e-4, warmup=0.15, decay=decay)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = {"constant": "constant_with_warmup"}.get(decay, decay)
    schedule = transformers.get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=20)
    for step in range(20):
        assert learning_rate(step, 20, training) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_every_training_has_a_step_with_a_learning_rate(warmup, decay):
    training = TrainingConfig(steps=1, learning_rate=3e-4, warmup=warmup, decay=decay)
    assert learning_rate(0, 1, training) == 3e-4
    for steps in range(2, 6):
        assert max(learning_rate(step, steps, training) for step in range(steps)) > 0


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, kept = make_optimizer(model, TrainingConfig(weight_decay=0.1)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.1
    assert sorted(tuple(p.shape) for p in kept["params"]) == [(4,), (4,), (4,)]
    assert kept["weight_decay"] == 0.0


def test_digests_tell_parts_apart():
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
