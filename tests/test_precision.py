"""Which precision a training takes. A CPU stands in for a GPU: `auto` would take bf16 there, too."""

import copy
from collections import Counter

import pytest
import torch
from taught import curve, student, teach, weights

from raykd.config.methods import Method
from raykd.models import loading
from raykd.models.torch_compile import BACKEND
from raykd.training import precision
from raykd.training.events import Done, Stopped
from raykd.training.loop import train

KD = Method(type="kd", alpha=0.5, temperature=2.0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def bf16(monkeypatch):
    """As on a GPU that has it."""
    monkeypatch.setattr(loading, "default_dtype", lambda device=None: "bfloat16")


@pytest.mark.parametrize("is_faster", ["float32", "bfloat16"])
def test_auto_takes_what_is_faster(taught, bf16, monkeypatch, is_faster):
    """All trainings of the same model on the same rows do, and their numbers are those of that precision."""
    timed = []
    monkeypatch.setattr(
        precision, "faster_dtype", lambda work, device: timed.append([one(is_faster) for one in work]) or is_faster
    )
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}, {is_faster}")  # or it would be remembered
    name = {"float32": "fp32", "bfloat16": "bf16"}[is_faster]
    for seed in (21, 22) if is_faster == "float32" else (28, 29):
        auto = student(taught, KD, seed=seed, training={"precision": "auto", "weight_decay": 0.02})
        losses = curve(train(auto))
        plain = student(taught, KD, seed=seed, training={"precision": name, "weight_decay": 0.02})
        assert losses == curve(train(plain))
        assert all(torch.equal(value, weights(plain)[key]) for key, value in weights(auto).items())
        assert auto.result()["dtype"] == plain.result()["dtype"] == is_faster
    assert len(timed) == 1


def test_both_are_timed_on_a_copy(taught, monkeypatch):
    """Running statistics are not touched, nor is a gradient left."""

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)

        def forward(self, x):
            out = self.linear(self.norm(x))
            seen.append((out.dtype, self.training))
            return out

    class Task:
        decisions = staticmethod(lambda outputs, batch: outputs)

    class Batch:
        inputs = {"x": torch.randn(8, 4)}

    seen, model = [], Normed().eval()
    before = copy.deepcopy(model.state_dict())
    work = precision.passes(model, Task, [Batch, Batch], torch.device("cpu"))
    assert precision.faster_dtype(work, torch.device("cpu")) in ("float32", "bfloat16")
    assert seen == 2 * (precision.ROUNDS + 1) * [(torch.bfloat16, True), (torch.float32, True)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize(
    ("fp32_ms", "bf16_ms", "taken"),
    [(10.0, 20.0, "float32"), (20.0, 10.0, "bfloat16"), (9.5, 10.0, "bfloat16"), (8.9, 10.0, "float32")],
)
def test_fp32_is_taken_only_if_it_is_clearly_faster(fp32_ms, bf16_ms, taken, monkeypatch, caplog):
    """Then it is said, with both times, since a user would expect bf16. Neither planning nor a hiccup counts."""
    now, calls = [0.0], Counter()

    def work(dtype: str) -> None:
        calls[dtype] += 1
        slow = 100.0 if calls[dtype] == 1 or (calls[dtype] == 4 and dtype == taken) else 0.0
        now[0] += slow + (fp32_ms if dtype == "float32" else bf16_ms) / 1000

    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert precision.faster_dtype([work, work], torch.device("cpu")) == taken
    said = [f"{fp32_ms:.3g} ms" in text and f"{bf16_ms:.3g} ms" in text for text in caplog.messages]
    assert said == [True] * (taken == "float32")


def test_what_cannot_be_timed_takes_bf16_and_is_timed_again(taught, bf16, monkeypatch, caplog):
    """As where a neighbour on the GPU holds its memory for a moment, or a model cannot be copied."""
    errors = iter([torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("only leaf tensors can be copied")])

    def fails(*_):
        raise next(errors)

    monkeypatch.setattr(precision, "passes", fails)
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}, failed")
    for seed in (23, 24):
        job = student(taught, KD, seed=seed, training={"weight_decay": 0.03})
        list(train(job))
        assert job.result()["dtype"] == "bfloat16"
    assert next(errors, None) is None, "the first failure was not remembered"
    assert sum("could not be timed" in text for text in caplog.messages) == 2


def test_a_resumed_training_keeps_its_precision(taught, bf16, monkeypatch):
    """Also on another GPU, where the other one would be faster. Where a checkpoint says none, nothing was timed."""
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}, resumed")
    monkeypatch.setattr(precision, "faster_dtype", lambda work, device: "float32")
    stopped = [student(taught, KD, seed=seed, steps=6, training={"eval_every": 2}) for seed in (25, 26)]
    for job in stopped:
        asked = iter([False] * 3)
        assert isinstance(list(train(job, stop=lambda asked=asked: next(asked, True)))[-1], Stopped)
        assert (job.folder / "dtype").read_text() == "float32"
    (stopped[1].folder / "dtype").unlink()
    timed = []
    monkeypatch.setattr(precision, "_timed", lambda *_: timed.append(1))
    for job, dtype in zip(stopped, ("float32", "bfloat16"), strict=True):
        assert isinstance(list(train(job))[-1], Done)
        assert job.result()["dtype"] == dtype
    assert not timed


@pytest.mark.parametrize(
    "why", [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "auto", "compile": True}, {}]
)
def test_nothing_is_timed_where_nothing_is_to_choose(taught, bf16, monkeypatch, why):
    """The last: a model whose batches keep a GPU busy."""
    timed = []
    monkeypatch.setattr(precision, "passes", lambda *_: timed.append(1) or [])
    monkeypatch.setenv(BACKEND, "eager")
    if not why:
        monkeypatch.setattr(precision, "LARGEST_FLOPS", 1.0)
    job = student(taught, KD, seed=27, training=why)
    list(train(job))
    assert not timed
    assert job.result()["dtype"] == ("float32" if why.get("precision") == "fp32" else "bfloat16")


def test_flops_are_those_of_the_products():
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 8), torch.nn.Linear(8, 4, bias=False))
    assert precision.flops(model, tokens=10.0) == 6 * 32 * 10
