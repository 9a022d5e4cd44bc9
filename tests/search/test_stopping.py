"""Signals that stop a sweep."""

import signal
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
    with stopped_gently(state, stop, recorder) as stopping:
        signal.raise_signal(signal.Signals[signals[0]])
        assert stop()
        if ended_by is None:
            signal.raise_signal(signal.Signals[signals[1]])
        else:
            with pytest.raises(ended_by):
                signal.raise_signal(signal.Signals[signals[1]])
        code = getattr(stopping.error(), "code", 130)
    assert code == 128 + signal.Signals[signals[0]], "the exit code says what stopped it first"
    assert not Flag(tmp_path, "stop")()
