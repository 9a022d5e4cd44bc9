"""The training rows of a teacher, and of each of its fold models."""

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest
from raykd.common.units import counted
from raykd.config.schema import TeacherConfig
from raykd.data.groups import groups_of
from raykd.data.split import Split
from raykd.tasks import Task


def subset(split: Split, teacher: TeacherConfig) -> np.ndarray:
    """Positions of the raw rows that a recipe draws with its seed, ascending."""
    assert teacher.recipe is not None
    rows = len(split.rows)
    count = max(1, round(teacher.recipe.rows * rows))
    return np.sort(np.random.default_rng(teacher.recipe.seed).permutation(rows)[:count])


def held_out(split: Split, teacher: TeacherConfig, task: Task) -> list[np.ndarray]:
    """For each of k folds, the positions of the raw rows that its model is not trained on. k = 1: no folds.

    Rows are assigned by content: equal rows and rows of one group (as questions on the same context) are in the same
    fold, so that the model used for a row has not been trained on its content. The numbers of groups in two folds
    differ by at most one. Groups that share an equal row are one, which can be very large; then the folds have about
    equally many rows instead.
    """
    seen = subset(split, teacher)
    if teacher.folds == 1:
        return []
    groups = split.ids
    if (named := groups_of(split, task)) is not None:
        groups = np.frombuffer(b"".join(digest(v.encode()) for v in named), np.uint8).reshape(-1, DIGEST_BYTES)
    named_group = _numbers(groups[seen])
    group = _joined(named_group, _numbers(split.ids[seen]))
    count = int(group.max()) + 1
    merged = count <= named_group.max()  # some groups share an equal row
    if count < teacher.folds:
        as_one = " (those that share an equal row are one)" if merged else ""
        reason = f"the data has only {counted(count, 'group')} of rows{as_one}"
        raise ConfigError(f"teachers.{teacher.name}.folds", teacher.folds, reason, "Use fewer folds")
    fold = _balanced(group, teacher.folds) if merged else group % teacher.folds
    return [seen[fold == k] for k in range(teacher.folds)]


def _balanced(group: np.ndarray, folds: int) -> np.ndarray:
    """(N,) the fold of each row: the largest groups first, each into the fold with the fewest rows. group: (N,)."""
    sizes, rows = np.bincount(group), np.zeros(folds, int)
    fold = np.zeros(len(sizes), int)
    for number in np.argsort(-sizes, kind="stable"):
        fold[number] = rows.argmin()
        rows[fold[number]] += sizes[number]
    return fold[group]


def _numbers(hashes: np.ndarray) -> np.ndarray:
    """(N,) from 0, equal for equal hashes: (N, 16) uint8. Sorted hashes are in a random order."""
    return np.unique(hashes, axis=0, return_inverse=True)[1].reshape(-1)


def _joined(group: np.ndarray, content: np.ndarray) -> np.ndarray:
    """(N,) the groups' numbers, where groups with a row of equal content are one: the one with the lowest number.

    group, content: (N,) numbers from 0.
    """
    while True:
        lowest = np.full(content.max() + 1, len(group))
        np.minimum.at(lowest, content, group)
        of_group = np.full(group.max() + 1, len(group))
        np.minimum.at(of_group, group, lowest[content])
        joined = of_group[group]
        if (joined == group).all():
            return np.unique(group, return_inverse=True)[1].reshape(-1)
        group = joined
