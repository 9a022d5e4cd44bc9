"""Signals that stop a sweep."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from raykd.cluster.flags import Flag
from raykd.search.stopping import stopped_gently


@pytest.mark.parametrize(
    ("signals", "ended_by"),
    [
        (["SIGTERM", "SIGTERM"], None),  # `timeout` sends two; the trials write their checkpoints
        (["SIGINT", "SIGINT"], KeyboardInterrupt),
        (["SIGTERM", "SIGINT"], SystemExit),
    ],
)
def test_a_second_signal(tmp_path, signals, ended_by):
    state: Any = SimpleNamespace(over="")
    recorder: Any = SimpleNamespace(stopping=lambda: None)
    stop = Flag(tmp_path, "stop")
    with nullcontext() if ended_by is None else pytest.raises(ended_by) as ended:
        with stopped_gently(state, stop, recorder) as stopping:
            signal.raise_signal(signal.Signals[signals[0]])
            assert stop.path.exists()
            signal.raise_signal(signal.Signals[signals[1]])
        assert stopping.signal == signal.SIGTERM
    assert ended is None or getattr(ended.value, "code", 130) == 128 + signal.Signals[signals[0]]
    assert not stop.path.exists()
