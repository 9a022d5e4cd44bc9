"""The rows that a job trains on, as its model takes them."""

from typing import Any

import datasets
import numpy as np

from raykd.common.row_files import open_rows
from raykd.models.inputs import InputRows
from raykd.plan.job import Job
from raykd.tasks import Task


def shortened(rows: dict[str, list], tokens: int) -> dict[str, list]:
    """Encoded rows of a language model, each cut after at most so many tokens, with a decision at its last one."""
    cut = dict(rows)
    cut["input_ids"] = [ids[:tokens] for ids in rows["input_ids"]]
    cut["length"] = [len(ids) for ids in cut["input_ids"]]
    cut["positions"] = [[length - 2] for length in cut["length"]]
    cut["labels"] = [[ids[-1]] for ids in cut["input_ids"]]
    return cut | {"decisions": [1] * len(cut["length"])}


class TrainRows:
    """The encoded training rows. If the job augments its data, they are encoded again in every step."""

    def __init__(self, job: Job, rows: datasets.Dataset, task: Task, seed: int) -> None:
        self.job, self.task, self.seed, self.encoded = job, task, seed, InputRows(rows, task)
        if job.augment:
            self.labels = rows.select_columns("labels")
            example = np.asarray(rows.select_columns("example")[:]["example"])
            raw = [open_rows(folder) for folder in job.raw_train]
            starts = np.cumsum([0] + [len(split) for split in raw])
            counts = [len(encoded.open()) for encoded in job.train]
            self.raw_positions = example + np.repeat(starts[:-1], counts)  # in all raw rows, one split after another
            self.raw = datasets.concatenate_datasets(
                [
                    split.select_columns([n for n in split.column_names if n in task.columns + task.optional_columns])
                    for split in raw
                ]
            )

    def augmented(self, step: int, positions: np.ndarray) -> dict[str, list]:
        """The raw rows, augmented. The result depends on the seed, the step and the row alone."""
        rows = self.raw[self.raw_positions[positions]]
        assert self.job.augment is not None
        columns: dict[str, list] = {name: [] for name in rows}
        for i, position in enumerate(positions):
            rng = np.random.default_rng([self.seed, step, int(position)])
            one = self.task.augment({name: [values[i]] for name, values in rows.items()}, rng, self.job.augment)
            for name in columns:
                columns[name] += one[name]
        return columns

    def encode(self, raw: dict[str, list], processor: Any, positions: np.ndarray, task: Task) -> dict[str, list]:
        """Raw rows as a model takes them. task: with that model's max_length."""
        columns = task.encode(raw, processor, False)
        return columns | {"labels": self.labels[positions]["labels"]}


def used_rows(rows: datasets.Dataset, examples: np.ndarray | None) -> np.ndarray:
    """(N,) positions of the encoded rows that a job trains on. examples: its subset; None: all."""
    if examples is None:
        return np.arange(len(rows))
    return np.flatnonzero(np.isin(np.asarray(rows.select_columns("example")[:]["example"]), examples))
