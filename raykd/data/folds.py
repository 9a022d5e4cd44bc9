"""The training rows of a teacher, and of each of its fold models."""

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest
from raykd.common.units import counted
from raykd.config.schema import TeacherConfig
from raykd.data.loading import Split, groups_of
from raykd.tasks import Task


def subset(split: Split, teacher: TeacherConfig) -> np.ndarray:
    """Positions of the raw rows that a recipe draws with its seed, ascending."""
    assert teacher.recipe is not None
    rows = len(split.rows)
    count = max(1, round(teacher.recipe.rows * rows))
    return np.sort(np.random.default_rng(teacher.recipe.seed).permutation(rows)[:count])


def held_out(split: Split, teacher: TeacherConfig, task: Task) -> list[np.ndarray]:
    """For each of k folds, the positions of the raw rows that its model is not trained on. k = 1: no folds.

    Rows are assigned by content: equal rows (or rows of one group, as questions on the same context) are in the same
    fold, so that the model used for a row has not been trained on its content. The folds' sizes differ by at most one
    group.
    """
    seen = subset(split, teacher)
    if teacher.folds == 1:
        return []
    groups = split.ids
    if (named := groups_of(split, task)) is not None:
        groups = np.frombuffer(b"".join(digest(v.encode()) for v in named), np.uint8).reshape(-1, DIGEST_BYTES)
    distinct, group = np.unique(groups[seen], axis=0, return_inverse=True)  # sorted hashes: a random order
    if len(distinct) < teacher.folds:
        raise ConfigError(
            f"teachers.{teacher.name}.folds",
            teacher.folds,
            f"the data has only {counted(len(distinct), 'group')} of rows",
            "Use fewer folds",
        )
    fold = group.reshape(-1) % teacher.folds
    return [seen[fold == k] for k in range(teacher.folds)]
