"""Which precision a training takes. A CPU stands in for a GPU: `auto` would take bf16 there, too."""

import copy

import pytest
import torch
from taught import curve, student, teach, weights

from raykd.config.methods import Method
from raykd.models import loading
from raykd.training import precision
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
        precision, "faster", lambda work, device: timed.append([one(is_faster) for one in work]) or is_faster
    )
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}, {is_faster}")  # or it would be remembered
    name = {"float32": "fp32", "bfloat16": "bf16"}[is_faster]
    for seed in (21, 22):
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
            self.seen = set()

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
    found = precision.faster(precision.passes(model, Task, [Batch, Batch], torch.device("cpu")), torch.device("cpu"))
    assert found in ("float32", "bfloat16")
    assert seen == 4 * [(torch.bfloat16, True), (torch.float32, True)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("slow", ["float32", "bfloat16"])
def test_the_slower_one_is_not_taken(slow, monkeypatch, caplog):
    """And fp32 is said, with both times, since a user would expect bf16."""
    now = [0.0]

    def work(dtype: str) -> None:
        first = dtype not in called
        called.add(dtype)
        now[0] += 100.0 if first and dtype != slow else 0.02 if dtype == slow else 0.01  # planning does not count

    called: set[str] = set()
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    found = precision.faster([work, work], torch.device("cpu"))
    assert found == {"float32": "bfloat16", "bfloat16": "float32"}[slow]
    assert ["10 ms" in text and "20 ms" in text for text in caplog.messages] == [True] * (slow == "bfloat16")


def test_memory_that_ends_takes_bf16(taught, bf16, monkeypatch):
    def full(work, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(precision, "faster", full)
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}, full")
    job = student(taught, KD, seed=23)
    list(train(job))
    assert job.result()["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "why", [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "auto", "compile": True}, {}]
)
def test_nothing_is_timed_where_nothing_is_to_choose(taught, bf16, monkeypatch, why):
    """The last: a model whose batches keep a GPU busy."""
    monkeypatch.setattr(precision, "passes", None)
    monkeypatch.setenv("RAYKD_COMPILE_BACKEND", "eager")
    if not why:
        monkeypatch.setattr(precision, "LARGEST_FLOPS", 1.0)
    job = student(taught, KD, seed=24, training=why)
    list(train(job))
    assert job.result()["dtype"] == ("float32" if why.get("precision") == "fp32" else "bfloat16")


def test_flops_are_those_of_the_products():
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 8), torch.nn.Linear(8, 4, bias=False))
    assert precision.flops(model, tokens=10.0) == 6 * 32 * 10
