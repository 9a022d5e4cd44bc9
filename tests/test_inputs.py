"""Encoded rows as models take them are those of `datasets`, to the last bit of every task's batches."""

import datasets
import numpy as np
import pytest
import torch
from tiny import (
    capitals_job,
    emotions_job,
    entities_job,
    plots_job,
    questions_job,
    reviews_job,
    similarities_job,
)

from raykd.common.ragged import Ragged, concatenated
from raykd.config.load import build
from raykd.models.inputs import InputRows, input_columns
from raykd.plan.prepare import prepare
from raykd.tasks import make_task
from raykd.tasks.common import Batch
from raykd.tasks.text_classification import TextClassification

JOBS = [reviews_job, entities_job, emotions_job, similarities_job, plots_job, capitals_job, questions_job]


@pytest.mark.parametrize("made", JOBS)
def test_every_tasks_batches_are_the_same(tmp_path, made):
    prepared = prepare(build(made(tmp_path)))
    rows = prepared.student.splits["train"].open()
    several = datasets.concatenate_datasets([rows, rows.select(range(7)), rows])  # chunks of several files
    task, processor = prepared.task, prepared.student.model.processor
    positions = np.random.default_rng(0).integers(0, len(several), 23)  # in any order, some twice
    known, found = input_columns(several, task), InputRows(several, task)
    assert len(found) == len(known)
    np.testing.assert_array_equal(found.lengths, known["length"][:])
    before, now = known[positions], found[positions]
    assert before.keys() == now.keys()
    np.testing.assert_array_equal(task.shapes(now), task.shapes(before))
    one, other = tensors(task.collate(now, processor)), tensors(task.collate(before, processor))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name
    arrays = [name for name, values in now.items() if isinstance(values[0], np.ndarray)]
    assert "input_ids" in arrays


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    others = {"labels": batch.labels.nan_to_num(), "mask": batch.mask, "before": batch.before, "at": batch.positions}
    return batch.inputs | {name: value for name, value in others.items() if value is not None}


@pytest.mark.parametrize("longest", [3, 500])
def test_rows_of_one_array(longest):
    """Short rows are looked up all at once, long ones copied one by one."""
    rng = np.random.default_rng(longest)
    lists = [rng.integers(0, 9, rng.integers(0, longest + 1)).tolist() for _ in range(40)]
    ends = np.cumsum([len(values) for values in lists]).astype(np.int32)
    starts = ends - np.array([len(values) for values in lists], np.int32)
    chosen = rng.integers(0, 40, 60)  # in any order, some twice
    rows = Ragged(np.concatenate(lists).astype(np.int32), starts[chosen], ends[chosen])
    expected = [lists[i] for i in chosen]
    assert [row.tolist() for row in rows] == [rows[i].tolist() for i in range(60)] == expected
    assert [row.tolist() for row in rows[10:20]] == expected[10:20]
    assert (
        concatenated(rows).tolist()
        == concatenated(expected).tolist()
        == [value for values in expected for value in values]
    )
    assert concatenated(rows).dtype == np.int32
    assert concatenated(rows[:0]).tolist() == []


def test_a_collate_of_the_users_own_gets_lists(tmp_path):
    """Even where it derives from a task whose own one takes arrays: `ids + [0]` would add instead of append."""

    class Own(TextClassification):
        def collate(self, rows, processor):
            return super().collate(rows, processor)

    class Same(TextClassification):
        pass

    config = build(reviews_job(tmp_path))
    prepared = prepare(config)
    rows, names = prepared.student.splits["train"].open(), prepared.task.label_names
    assert make_task(config.task, names).arrays == Same(config.task, names).arrays == ("input_ids", "token_type_ids")
    assert Own(config.task, names).arrays == ()
    positions = np.array([3, 0])
    assert InputRows(rows, Own(config.task, names))[positions] == input_columns(rows, prepared.task)[positions]
