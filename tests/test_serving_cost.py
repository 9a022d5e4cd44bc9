"""What models cost to serve: which rows are timed, and the arithmetic and texts, by hand."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from test_conclusion import analyzed, arm

from raykd.common.gpu_driver import gpu_models
from raykd.common.units import counted, latency, milliseconds, rows_that, shown_size
from raykd.config.schema import TaskConfig
from raykd.experiment.examples import LONGEST, shown_examples
from raykd.models.serving_cost import chosen_rows, one_after_another, summary, times, with_card_line
from raykd.reports.format import literal
from raykd.reports.serving_cost import measured_models, score_latency, serving_cells, what_serving_costs
from raykd.tasks import make_task
from raykd.tracking.results import Scored, latencies

TEXTS = make_task(TaskConfig(type="text-classification"), ["bad", "good"])


def cost(latency: float, *, device: str = "a CPU, 1 thread", parameters: int = 1000) -> dict:
    one = {"rows": 1, "latency_ms": latency, "latency_p10_ms": 0.9 * latency, "latency_p90_ms": 1.2 * latency}
    batch = {name: 8 * value for name, value in one.items()}
    return {
        "parameters": parameters, "size_on_disk_bytes": 4 * parameters, "device": device, "dtype": "float32",
        "one_row": one | {"throughput_rows_per_s": round(1000 / latency, 2)},
        "batch": batch | {"throughput_rows_per_s": round(1000 / latency, 2)},
    }  # fmt: skip


def test_the_row_has_the_median_length_and_the_batch_has_all_lengths():
    lengths = [9, 3, 7, 5, 4, 8, 6]
    rows = Dataset.from_dict({"input_ids": [[n] * n for n in lengths], "labels": [[0]] * 7, "length": lengths})
    one, batch = chosen_rows(rows, TEXTS, 3)
    assert one["length"] == [6]
    assert batch["length"] == [3, 6, 9]
    assert chosen_rows(rows, TEXTS, 32)[1]["length"] == [3, 4, 5, 6, 7, 8, 9]


def test_the_first_repetition_is_not_counted():
    calls = []
    assert len(times(lambda: calls.append(0), 0.0)) == 3
    assert len(calls) == 4


def test_median_percentiles_and_throughput():
    found = summary([0.002, 0.001, 0.010, 0.003, 0.004], 6)
    assert found == {
        "rows": 6, "latency_ms": 3.0, "latency_p10_ms": pytest.approx(1.4), "latency_p90_ms": pytest.approx(7.6),
        "throughput_rows_per_s": 2000.0,
    }  # fmt: skip


def test_an_ensemble_runs_its_members_one_after_another():
    both = one_after_another([cost(2.0, parameters=1000), cost(3.0, parameters=500)])
    assert (both["parameters"], both["size_on_disk_bytes"]) == (1500, 6000)
    assert both["one_row"]["latency_ms"] == 5.0
    assert both["one_row"]["throughput_rows_per_s"] == 200.0
    assert both["batch"] == {
        "rows": 8, "latency_ms": 40.0, "latency_p10_ms": 36.0, "latency_p90_ms": 48.0, "throughput_rows_per_s": 200.0
    }  # fmt: skip


def test_a_card_gets_its_latency_once():
    card = "# reviews\n\n- size: 1,000 parameters\n- f1 on test: 0.9\n"
    first = with_card_line(card, cost(2.0))
    assert first.splitlines()[3].startswith(
        "- latency: 2.00 ms (1.80 to 2.40 ms) for one row, 16.0 ms (14.4 to 19.2 ms) for a batch of 8 (500 rows/s)"
    )
    assert first.splitlines()[3].endswith("on a CPU, 1 thread")
    second = with_card_line(first, cost(4.0))
    assert second.splitlines()[3].startswith("- latency: 4.00 ms (3.60 to 4.80 ms) for one row")
    assert second.replace(second.splitlines()[3], "") == first.replace(first.splitlines()[3], "")


def test_units():
    assert [shown_size(n) for n in (237_176, 4_900_000, 1_340_000_000)] == ["237 kB", "4.9 MB", "1.34 GB"]
    assert [milliseconds(n) for n in (0.314, 15.04, 480.4, 2400)] == ["0.31 ms", "15.0 ms", "480 ms", "2.40 s"]
    slow = {"latency_ms": 950.0, "latency_p10_ms": 900.0, "latency_p90_ms": 1200.0}
    assert latency(slow) == "950 ms (900 ms to 1.20 s)"
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "batch", "batches") == "2 batches"
    assert rows_that([3], "has", "have") + " no label" == "row 3 (counted from 0) has no label"
    assert rows_that([3, 5], "has", "have") == "2 rows (the first is row 3, counted from 0) have"


def test_the_line_on_the_screen_has_the_device():
    runs = [
        Scored(name, role, "kd", None, {}, np.ones(2), "", {"serving": cost(x)} if x else {})
        for name, role, x in (("a", "teacher", 2.0), ("ensemble", "ensemble", 4.0), ("student seed 0", "student", 1.0))
    ]
    assert latencies(runs) == (
        "latency of one row, median (10th to 90th percentile), on a CPU, 1 thread: a 2.00 ms (1.80 to 2.40 ms), "
        "ensemble 4.00 ms (3.60 to 4.80 ms), student 1.00 ms (0.90 to 1.20 ms)"
    )
    assert latencies([]) == ""


@pytest.fixture
def measured():
    found = analyzed(
        arm("kd", "method", [0.9, 0.88], 0.9),
        arm("a", "teacher", [0.85], 0.85),
        arm("b", "teacher", [0.8], 0.8),
        arm("ensemble", "ensemble", [0.92], 0.95),
    )
    costs = {"kd 0": cost(1.0), "a 0": cost(2.0), "b 0": cost(2.5, device="a GPU"), "ensemble 0": cost(4.0)}
    found.experiment.serving.update(costs)
    return found


def test_the_report_compares_what_ran_on_one_device(measured):
    assert [(m.name, m.kind) for m in measured_models(measured)] == [
        ("the student (kd)", "student"), ("ensemble", "ensemble"), ("a", "teacher")
    ]  # fmt: skip
    assert serving_cells(measured)[0] == {
        "name": "the student (kd)", "kind": "student", "parameters": "1,000", "size": "4 kB",
        "one_row": "1.00 ms (0.90 to 1.20 ms)", "batch": "8.00 ms (7.20 to 9.60 ms)",
        "rows": "8", "throughput": "1,000", "test": "89.0%",
    }  # fmt: skip
    text = what_serving_costs(measured)
    assert "4.0 times as fast as the ensemble" in text
    assert "a CPU, 1 thread" in text
    assert "a GPU" not in text
    assert score_latency(measured).drawing


def test_without_a_measurement_the_report_says_so(measured):
    measured.experiment.serving.clear()
    assert serving_cells(measured) == []
    assert what_serving_costs(measured) == ""
    assert not score_latency(measured).drawing


def test_examples_are_a_line_of_text_or_a_small_picture():
    rows = Dataset.from_dict({"text": ["short\n text", "x" * 500], "text_pair": ["other", "y"], "label": [0, 1]})
    found = shown_examples(TEXTS, rows, ["1", "0"])
    assert found["0"] == {"text": "short text / other"}
    assert found["1"]["text"] == f"{'x' * (LONGEST // 2 - 1)}… / y"
    pictures = make_task(TaskConfig(type="image-classification"), ["0", "1"])
    rows = Dataset.from_dict({"image": [Image.new("RGB", (400, 200), "red")], "label": [0]})
    assert list(shown_examples(pictures, rows.cast_column("image", _image()), ["0"])["0"]) == ["picture"]


def _image():
    from datasets import Image as Feature

    return Feature()


def test_a_users_text_is_no_markdown():
    assert literal("[a](http://b) <b>|`c`\n*d*") == r"\[a\](http://b) \<b\>\|\`c\` \*d\*"


def test_gpus_are_named_by_their_driver(tmp_path):
    assert gpu_models(tmp_path) == []
    for bus, name in (("0000:18:00.0", "NVIDIA H200"), ("0000:2a:00.0", "NVIDIA H200"), ("0000:3a:00.0", "NVIDIA L4")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 5\nVideo BIOS: \t 96.00.8a\n")
    assert gpu_models(tmp_path) == ["NVIDIA H200", "NVIDIA L4"]
