"""Signals that stop a sweep."""

import pickle
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raykd.cluster import flags
from raykd.cluster.flags import Flag
from raykd.search.stopping import stopped_gently


def test_a_flag_is_seen_by_processes_that_have_checked_it_before(tmp_path, monkeypatch):
    """NFS would show it to them up to a minute later, and they are killed after 20 seconds: so the folder is listed."""
    listed: list[Path] = []
    monkeypatch.setattr(flags, "list_anew", listed.append)
    flag = Flag(tmp_path, "stop", every=0)
    elsewhere = pickle.loads(pickle.dumps(flag))
    assert not elsewhere()
    flag.up()
    assert elsewhere()
    assert listed == [flag.path.parent] * 2


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
    stop = Flag(tmp_path, "stop")

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
