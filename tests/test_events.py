"""Events of a training, as `events.jsonl` keeps them."""

import pytest

from raykd.training.events import Evaluated, GenerationEnded, LogitsMissing, Stopped, from_json, to_json

HISTORY = [(1, {"loss": 0.5, "alpha": 1.0}), (2, {"loss": 0.25, "alpha": 0.5})]


@pytest.mark.parametrize(
    "event",
    [
        Evaluated(2, 2, 4, {"accuracy": 0.5}, HISTORY, {"teacher": "a", "share": 0.1}, 3.5),
        GenerationEnded(1, {"validation/accuracy": 0.5, "test/accuracy": 0.75}),
        Stopped(1, 2, 4, HISTORY),
        LogitsMissing(1, 2, 4, []),
    ],
)
def test_an_event_is_read_as_it_was_written(event):
    assert from_json(to_json(event)) == event


def test_the_line_of_an_older_raykd_is_read():
    line = '{"event": "evaluation", "generation": 2, "step": 2, "steps": 4, "metrics": {"nll": 1.5}, "history": []}'
    event = from_json(line)
    assert event == Evaluated(2, 2, 4, {"nll": 1.5}, [])
    assert isinstance(event, Evaluated)
    assert event.total_step == 6


@pytest.mark.parametrize("line", ['{"event": "evalu', '{"event": "started", "steps": 4}', "7"])
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError, match=r".+"):
        from_json(line)
