"""A student that starts with some of a pretrained model's layers."""

import copy
import json

import pytest
import torch
from taught import train_and_fill
from tiny import bert, electra, reviews_job, save_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.loading import load_model, load_whole
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.tasks import make_task
from raykd.teachers.serving import TeacherModel
from raykd.training.loop import train

TASKS = {
    BertForSequenceClassification: make_task(
        TaskConfig(type="text-classification", labels=["a", "b", "c"]), ["a", "b", "c"]
    ),
    GPT2LMHeadModel: make_task(TaskConfig(type="text-generation")),
    Qwen2ForCausalLM: make_task(TaskConfig(type="text-generation")),
}
CONFIGS = {
    BertForSequenceClassification: (BertConfig(**bert(), num_labels=3), "bert.encoder.layer"),
    GPT2LMHeadModel: (GPT2Config(vocab_size=80, n_positions=32, n_embd=8, n_layer=5, n_head=2), "transformer.h"),
    Qwen2ForCausalLM: (  # layers of two kinds
        Qwen2Config(
            vocab_size=80, hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2,
            num_key_value_heads=1, use_sliding_window=True, sliding_window=3, max_window_layers=2,
        ),
        "model.layers",
    ),
}  # fmt: skip
IDS = torch.arange(3, 15)[None]
CONFIGS[BertForSequenceClassification][0].num_hidden_layers = 5


def saved(kind, folder):
    torch.manual_seed(0)
    model = kind(copy.deepcopy(CONFIGS[kind][0])).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if model.can_generate():
        model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_kept_layers_run_one_after_the_other(kind, tmp_path):
    """The logits are those of the whole model with its other layers taken out, also after saving and loading."""
    whole = saved(kind, tmp_path / "whole")
    opened = open_model(ModelConfig(pretrained=str(tmp_path / "whole"), layers=[0, 3, 4]), TASKS[kind], "student.model")
    student = load_model(opened, 0).eval()
    assert student.config.num_hidden_layers == opened.config.num_hidden_layers == 3
    if student.can_generate():
        assert student.generation_config.eos_token_id == [7, 9], "where a text ends"
    body, name = CONFIGS[kind][1].rsplit(".", 1)
    layers = getattr(whole.get_submodule(body), name)
    setattr(whole.get_submodule(body), name, torch.nn.ModuleList([layers[0], layers[3], layers[4]]))
    whole.config.num_hidden_layers = 3
    if kinds := getattr(whole.config, "layer_types", None):
        assert len(set(kinds)) == 2
        whole.config.layer_types = [kinds[0], kinds[3], kinds[4]]
    with torch.no_grad():
        expected, found = (model(input_ids=IDS, use_cache=False).logits for model in (whole, student))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        student.save_pretrained(tmp_path / "student")
        auto = AutoModelForSequenceClassification if "Sequence" in kind.__name__ else AutoModelForCausalLM
        again = auto.from_pretrained(tmp_path / "student").eval()
        torch.testing.assert_close(again(input_ids=IDS, use_cache=False).logits, expected, rtol=0, atol=0)
    assert (
        json.loads((tmp_path / "student/config.json").read_text())[
            "n_layer" if kind is GPT2LMHeadModel else "num_hidden_layers"
        ]
        == 3
    )


def test_other_layers_are_another_model(tmp_path):
    saved(BertForSequenceClassification, tmp_path)
    task = TASKS[BertForSequenceClassification]
    specs = [ModelConfig(pretrained=str(tmp_path), layers=layers) for layers in (None, [0, 1], [0, 2], [0, 1, 2, 3, 4])]
    opened = [open_model(spec, task, "model") for spec in specs]
    assert len({model.digest for model in opened}) == len({model.logits_digest for model in opened}) == 4


def test_layers_that_there_are_not(tmp_path):
    saved(BertForSequenceClassification, tmp_path)
    spec = ModelConfig(pretrained=str(tmp_path), layers=[0, 5])
    with pytest.raises(ConfigError, match=r"student.model.layers.*5 layers.*0 to 4"):
        _ = open_model(spec, TASKS[BertForSequenceClassification], "student.model").config


@pytest.mark.parametrize(
    ("student", "named"),
    [
        ({"model": {"config": {"model_type": "bert"}, "layers": [0]}}, "layers"),
        ({"model": {"pretrained": "a/b", "layers": [1, 0]}}, "layers"),
        ({"model": {"pretrained": "a/b", "layers": [-1]}}, "layers"),
        ({"model": {"pretrained": "a/b", "layers": [0], "config": {"num_hidden_layers": 1}}}, "num_hidden_layers"),
        ({"model": {"pretrained": "a/b", "layers": [0]}, "lora": {"save": "adapter"}}, "lora.save"),
    ],
)
def test_settings_that_contradict(student, named):
    tree = {
        "name": "layers",
        "task": {"type": "text-classification", "labels": ["a", "b"]},
        "data": {"source": "somewhere", "train": "train", "validation": "validation", "test": "test"},
        "teachers": [{"name": "t", "model": "a/b"}],
        "student": student,
    }
    with pytest.raises(ConfigError, match=named):
        build(tree)


def test_a_teacher_and_a_student_are_trained_from_some_layers(tmp_path):
    """And are opened afterwards as what they are: models with fewer layers."""
    torch.manual_seed(0)
    tree = reviews_job(tmp_path)
    start = ElectraConfig(**electra(dropout=0.0, num_hidden_layers=4))
    ElectraForPreTraining(start).save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(tmp_path / "start")
    for member, layers in zip((*tree["teachers"], tree["student"]), ([0, 3], [1, 2, 3], [0, 3]), strict=True):
        member["model"] = {"pretrained": str(tmp_path / "start"), "layers": layers}
    config = build(override(tree, {"training.steps": 2, "training.eval_every": 2}))
    prepared = prepare(config)
    served = train_and_fill(config, prepared)
    assert [TeacherModel(each).models[0].config.num_hidden_layers for each in served] == [2, 3]
    student = student_jobs(config, prepared, Method(type="kd"), served)[0]
    list(train(student))
    saved = student.model.trained(student.result()["model"])
    assert load_whole(open_model(saved, prepared.task, "student.model"), None).config.num_hidden_layers == 2
