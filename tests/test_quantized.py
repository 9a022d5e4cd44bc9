"""Given teachers with weights of 8 or 4 bits. Everything runs in this process, on the CPU."""

from importlib.util import find_spec as really_find

import numpy as np
import pytest
import torch
from taught import fill_here
from tiny import capitals_job, llama
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.logits import LogitStore
from raykd.logits.heads import head_on
from raykd.models import quantized
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, student_jobs
from raykd.teachers.serving import TeacherModel
from raykd.training.loop import train

pytest.importorskip("bitsandbytes")
BITS = (None, 8, 4)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Three teachers, one model: as it is, and in 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("quantized")
    tree = capitals_job(folder, baseline=False)
    torch.manual_seed(0)
    config = LlamaConfig(**llama(hidden_size=64, intermediate_size=128, initializer_range=0.2))
    LlamaForCausalLM(config).save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(folder / "bytes").save_pretrained(folder / "teacher")
    tree["teachers"] = [
        {"name": f"bits-{bits}", "model": {"pretrained": str(folder / "teacher")} | ({"bits": bits} if bits else {})}
        for bits in BITS
    ]
    return override(tree, {"data.train": "train[:20]", "training.steps": 3, "training.eval_every": 3})


def test_their_logits_are_rougher_and_a_student_learns_from_them(job):
    config = build(job)
    prepared = prepare(config)
    served = [served_teacher(config, prepared, t, [], "float32") for t in config.teachers]
    assert len({each.key.fingerprint for each in served}) == 3
    folder, rows = prepared.teachers["bits-4"].splits["train"].folder, np.arange(20)
    states = []
    for each in served:
        packed = TeacherModel(each).logits([folder], rows, np.full(20, -1))
        states.append(np.concatenate(packed)[:, 7:].astype(np.float32))
    whole, *rough = states
    in_8, in_4 = (np.linalg.norm(found - whole) / np.linalg.norm(whole) for found in rough)
    assert 1e-4 < in_8 < 0.1 < in_4 < 0.8, "of random weights, larger than learnt ones"
    for teacher, each in zip(config.teachers, served, strict=True):
        fill_here(config, prepared, teacher, each)
    heads = [head_on(LogitStore.of(config), each.key, "cpu").weight for each in served]
    assert all(torch.equal(head, heads[0]) for head in heads), "the head keeps its weights"
    student = student_jobs(config, prepared, Method(type="kd", temperature=1.0), served)[0]
    list(train(student))
    assert student.done


def test_its_linear_layers_hold_integers(job):
    config = build(job)
    prepared = prepare(config)
    for bits, teacher in zip(BITS[1:], config.teachers[1:], strict=True):
        model = TeacherModel(served_teacher(config, prepared, teacher, [], "float32")).models[0]
        weight = model.model.layers[0].mlp.up_proj.weight
        assert (weight.dtype, weight.numel()) == ((torch.int8, 64 * 128) if bits == 8 else (torch.uint8, 64 * 128 // 2))
        assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"teachers.1.recipe": {"seed": 1}}, "teachers.1.model.bits"),
        ({"student.model.bits": 8}, "student.model.bits"),
        ({"teachers.1.model.layers": [0]}, "teachers.1.model.bits"),
        ({"teachers.1.model.bits": 3}, "teachers.1.model.bits"),
    ],
)
def test_where_it_is_refused(job, changes, key):
    with pytest.raises(ConfigError) as refused:
        build(override(job, changes))
    assert refused.value.key == key


def test_without_bitsandbytes_it_is_refused_before_anything_starts(job, monkeypatch):
    def find(name):
        return None if name == "bitsandbytes" else really_find(name)

    monkeypatch.setattr(quantized, "find_spec", find)
    with pytest.raises(ConfigError, match="raykd.quantized") as refused:
        prepare(build(job))
    assert refused.value.key.endswith(".bits")
