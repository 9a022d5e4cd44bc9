"""Language models: their states at the decisions and their head give the logits that the whole model gives."""

import json

import pytest
import torch
from tiny import bert, capitals_job, llama, save_bytes_tokenizer

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.language import States, misfit
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.prediction import autocast
from raykd.plan.prepare import prepare
from raykd.tasks import make_task

TASK = make_task(TaskConfig(type="text-generation", max_length=32))
SCALED = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.05, "head_dim": 16},
    "cohere": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 5.0},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(save_bytes_tokenizer(tmp_path_factory.mktemp("bytes")))


def load(config, tokenizer):
    opened = open_model(ModelConfig(config=config, tokenizer=tokenizer), TASK, "student.model")
    return load_model(opened, 0, opened.processor).eval(), opened.processor


@pytest.mark.parametrize("kind", SCALED)
def test_decisions_are_the_whole_models_logits(kind, tokenizer):
    model, processor = load(llama(model_type=kind, num_key_value_heads=2, **SCALED[kind]), tokenizer)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    assert misfit(model) == ""
    encoded = TASK.encode({"prompt": ["ab", "c"], "completion": ["c", "defg"]}, processor, True)
    batch = TASK.collate(encoded, processor)
    positions = batch.inputs["positions"]
    plain = {name: values for name, values in batch.inputs.items() if name != "positions"}
    with torch.no_grad():
        outputs = model(**batch.inputs)
        whole = model(**plain).logits[torch.arange(2)[:, None], positions, :260]
    assert isinstance(outputs, States)
    torch.testing.assert_close(TASK.decisions(outputs, batch), whole)
    assert whole.abs().max() > 0.04
    assert model.generate(**plain, max_new_tokens=3, do_sample=False).shape == (2, plain["input_ids"].shape[1] + 3)


def test_the_head_computes_in_fp32_under_autocast(tokenizer):
    model, processor = load(llama(), tokenizer)
    batch = TASK.collate(TASK.encode({"text": ["abcdefgh"]}, processor, True), processor)
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        outputs = model(**batch.inputs)
        inside = TASK.decisions(outputs, batch)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(TASK.decisions(outputs, batch), inside, rtol=0, atol=0)
    assert inside.unique().numel() > 0.9 * inside.numel()  # in bf16 many would tie


def test_a_model_that_sees_the_next_token_is_refused(tokenizer):
    model, _ = load(bert() | {"vocab_size": 264}, tokenizer)
    assert "sees what it is to predict" in misfit(model)
    model, _ = load(bert() | {"vocab_size": 264, "is_decoder": True}, tokenizer)
    assert misfit(model) == ""


def test_a_head_that_raykd_does_not_know_is_refused(tokenizer):
    model, _ = load(llama(), tokenizer)
    whole = type(model).forward

    def doubled(*args, **inputs):
        outputs = whole(model, *args, **inputs)
        outputs.logits = outputs.logits * 2
        return outputs

    plain = model.forward
    model.forward = lambda **inputs: plain(**inputs) if "positions" in inputs else doubled(**inputs)
    assert "not those of its head" in misfit(model)


def refused(tree, *parts):
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    line = str(error.value)
    for part in parts:
        assert part in line, line
        line = line[line.index(part) + len(part) :]


def test_models_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    tree = capitals_job(tmp_path)
    small = override(tree, {"student.model.config.vocab_size": 259})
    refused(small, "student.model.tokenizer", "260 tokens", "only 259", "student.model.config.vocab_size")
    short = override(tree, {"student.model.config.max_position_embeddings": 32})
    refused(short, "task.max_length = 64", "32 positions")
    other = save_bytes_tokenizer(tmp_path / "other")
    saved = json.loads((other / "tokenizer.json").read_text())
    words = saved["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(saved))
    strange = override(tree, {"teachers.a.model.tokenizer": str(other)})
    named = (
        "teachers.a.model.tokenizer",
        "data.train",
        "token 1 of row 1 is 'a' (69)",
        "the student's 'a' (68)",
        "later version",
    )
    refused(strange, *named)
    body = load_model(open_model(ModelConfig(config=llama(tie_word_embeddings=False), tokenizer=""), TASK, "m"), 0)
    body.model.save_pretrained(tmp_path / "body")
    headless = {"pretrained": str(tmp_path / "body"), "tokenizer": tree["student"]["model"]["tokenizer"]}
    refused(override(tree, {"student.model": headless}), "student.model", "no language-model head", "lm_head.weight")
