"""Signals that stop a sweep."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from raykd.cluster.flags import Flag
from raykd.search.stopping import stopped_gently


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        ("SIGTERM", "SIGTERM", False),  # `timeout` sends two; the trials write their checkpoints
        ("SIGINT", "SIGINT", True),
        ("SIGTERM", "SIGINT", True),
    ],
)
def test_a_second_signal(tmp_path, first, second, stops):
    state: Any = SimpleNamespace(over="")
    recorder: Any = SimpleNamespace(stopping=lambda: None)
    stop = Flag(tmp_path / "store", "stop")
    assert stop.path.parent.is_dir(), "before another node can remember that there is no such folder"

    def sweep() -> None:
        with stopped_gently(state, stop, recorder) as stopping:
            signal.raise_signal(signal.Signals[first])
            assert stop.path.exists()
            # In Ray's C++, only a KeyboardInterrupt stays what it is.
            with pytest.raises(KeyboardInterrupt) if stops else nullcontext() as interrupted:
                signal.raise_signal(signal.Signals[second])
            raise interrupted.value if stops else stopping.error()

    with pytest.raises(BaseException) as ended:
        sweep()
    code = ended.value.code if isinstance(ended.value, SystemExit) else 130
    assert isinstance(ended.value, SystemExit if first == "SIGTERM" else KeyboardInterrupt)
    assert code == 128 + signal.Signals[first], "the exit code says what stopped it first"
    assert not stop.path.exists()
