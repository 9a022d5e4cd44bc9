import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_logits import ids

from raykd.logits.rows import RowIndex

MIX = np.uint64(0x9E3779B97F4A7C15)


def colliding(lows: list[int], key: int = 99) -> np.ndarray:
    """Distinct ids that all have the same 64-bit key."""
    low = np.array(lows, np.uint64)
    return np.stack([np.uint64(key) ^ (low * MIX), low], axis=1).view(np.uint8)


def check(have: np.ndarray, ask: np.ndarray) -> None:
    """Against a plain dict."""
    index, first = RowIndex(have), {}
    for i, row in enumerate(map(bytes, have)):
        first.setdefault(row, i)
    assert sorted(index.first) == sorted(first.values())
    assert len(index) == len(first)
    assert [index.first[w] for w in index.which] == [first[bytes(r)] for r in have]
    found = index.find(ask)
    expected = [first.get(bytes(r), -1) for r in ask]
    assert [index.first[w] if w >= 0 else -1 for w in found] == expected


# Few distinct values, in either half: equal rows, equal halves and colliding keys all turn up.
words = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.lists(words, max_size=30), st.lists(words, max_size=30), st.booleans())
def test_rows_are_found_as_a_dict_finds_them(have, ask, collide):
    def to_ids(pairs):
        if collide:
            both = [colliding([low], key=high) for high, low in pairs]
            return np.concatenate([np.zeros((0, 16), np.uint8), *both])
        return np.array(pairs, np.uint64).reshape(-1, 2).view(np.uint8)

    check(to_ids(have), to_ids(ask))


def test_rows_with_the_same_key_are_distinguished():
    have = np.concatenate([colliding([5, 3, 9, 3, 1]), ids(range(20)), colliding([3, 7])])
    check(have, np.concatenate([colliding([1, 2, 3, 4, 5, 9, 11]), ids(range(15, 25))]))


@pytest.mark.parametrize("have", [0, 1])
def test_none_and_one(have):
    check(ids(range(have)), ids(range(3)))
    check(ids(range(have)), ids([]))
