"""Heads compute in fp32 where the body is autocast to bf16: no ties that the model does not have."""

import copy

import numpy as np
import pytest
import torch
from tiny import electra

from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.fp32_heads import head_layers
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.prediction import Inference, PendingLogits, autocast
from raykd.tasks import make_task
from raykd.tasks.common import Batch

POSITIONS = 384
QUESTIONS = make_task(TaskConfig(type="question-answering", max_length=POSITIONS, stride=64))
REVIEWS = make_task(TaskConfig(type="text-classification", labels=["a", "b"], max_length=32), ["a", "b"])


class OneBatch:
    """A task whose rows are this batch already."""

    def __init__(self, task, batch):
        self.task, self.batch = task, batch

    def shapes(self, rows):
        return self.task.shapes({"length": [POSITIONS] * len(self.batch.labels)})

    def collate(self, rows, processor):
        return self.batch

    def decisions(self, outputs, batch):
        return self.task.decisions(outputs, batch)


def model_of(task, key="model"):
    config = electra(max_position_embeddings=POSITIONS, initializer_range=0.3)
    return load_model(open_model(ModelConfig(config=config, tokenizer="none"), task, key), 0).eval()


def rounded(model):
    """As heads were before: torch's own layers, which autocast rounds."""
    plain = copy.deepcopy(model)
    for layer in head_layers(plain):
        del layer.forward
    return plain


def questions(rows=64):
    torch.manual_seed(0)
    tokens = torch.randint(5, 64, (rows, POSITIONS))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Batch(inputs, torch.zeros(rows, 2, dtype=torch.int64))


def tied(model, dtype):
    """The share of stored decisions whose largest logit two positions have."""
    task = OneBatch(QUESTIONS, questions())
    inference = Inference([model], task, None, torch.device("cpu"), dtype)
    found = np.stack(PendingLogits(inference, {"length": [POSITIONS]}).get())
    return np.mean((found == found.max(-1, keepdims=True)).sum(-1) > 1)  # of (B, 2, C)


def test_a_teachers_decisions_in_bf16_have_no_false_ties():
    model = model_of(QUESTIONS)
    assert tied(model, "float32") == 0
    assert tied(rounded(model), "bfloat16") > 0.01
    assert tied(model, "bfloat16") == 0


@pytest.mark.parametrize("task", [QUESTIONS, REVIEWS])
def test_a_students_loss_sees_fp32_logits_in_bf16(task):
    model, batch = model_of(task), questions(4)
    with autocast(torch.device("cpu"), "bfloat16"):
        decisions = task.decisions(model(**batch.inputs), batch)
        assert task.decisions(rounded(model)(**batch.inputs), batch).dtype == torch.bfloat16
    assert decisions.dtype == torch.float32
    assert not torch.equal(decisions, decisions.bfloat16().float())
    decisions.square().sum().backward()
    assert all(layer.weight.grad.dtype == torch.float32 for layer in head_layers(model))


def test_in_fp32_nothing_changes():
    model, batch = model_of(QUESTIONS), questions(4)
    plain = rounded(model)
    losses = [QUESTIONS.decisions(m(**batch.inputs), batch).square().sum() for m in (model, plain)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_heads_are_the_layers_outside_the_body():
    model = model_of(REVIEWS)
    names = {layer: name for name, layer in model.named_modules()}
    assert [names[layer] for layer in head_layers(model)] == ["classifier.dense", "classifier.out_proj"]
    body_alone = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    assert head_layers(body_alone) == [body_alone[1]]
