"""Every kind of model that transformers has for a task, from its config at toy size.

For each: a row has the same logits alone and beside a longer one; after the unused parameters are frozen, the loss of
any row reaches all others, so that several workers can train it; its head computes in fp32 in bf16; and the saved model
gives the same logits. Kinds that cannot be built here, or that do not pass, are listed with the reason.
"""

import json
import logging

import numpy as np
import pytest
import torch
from architectures import LEFT_OUT, PADDING_CHANGES, SETTINGS, kinds, small_config
from tiny import save_tokenizer

from raykd.common.ranks import DistContext
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.distillation import distillation_loss
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.prediction import autocast
from raykd.tasks import make_task
from raykd.tasks.common import Batch
from raykd.training.parallel import freeze_unused

CPU = torch.device("cpu")
REVIEWS = make_task(TaskConfig(type="text-classification", labels=["a", "b", "c"], max_length=32), ["a", "b", "c"])
QUESTIONS = make_task(TaskConfig(type="question-answering", max_length=32, stride=4))
PICTURES = make_task(TaskConfig(type="image-classification", labels=["a", "b", "c"]), ["a", "b", "c"])
COMMON = {"bert", "deberta-v2", "distilbert", "electra", "fnet", "gpt2", "llama", "modernbert", "roberta", "t5"}
COMMON |= {"convnext", "dinov2", "resnet", "siglip", "swin", "vit"}  # the tests of all other kinds are slow
TEXTS = {"text": ["good film", "bad plot and a very dull scene it is not great film actor"], "label": [1, 2]}
CONTEXTS = ["anna lives in paris .", "good film . ben lives in a very lovely city it is oslo ."]
ANSWERS = [{"text": [t], "answer_start": [c.index(t)]} for c, t in zip(CONTEXTS, ("paris", "oslo"), strict=True)]
ASKED = {"id": ["a", "b"], "question": ["where does anna live ?"] * 2, "context": CONTEXTS, "answers": ANSWERS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Without token types, which not every kind has."""
    folder = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}))
    return str(folder)


def opened(kind, task, tokenizer):
    """A model from scratch as raykd opens one, and what feeds it."""
    values = small_config(kind, SETTINGS.get(kind, {})).to_dict()
    for name in ("id2label", "label2id", "num_labels"):  # the task's
        values.pop(name, None)
    spec = ModelConfig(config=values | {"model_type": kind}, tokenizer=tokenizer)
    model = open_model(spec, task, "model")
    processor = model.processor if tokenizer else None
    return load_model(model, 0, processor).eval(), processor


def lively(model):
    """Weights large enough that a wrong position or token shows in the logits."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1 and weight.std() < 0.2:
            torch.nn.init.normal_(weight, std=0.2)


def tokens(task, rows, processor):
    """Both rows as one batch, and each alone."""
    encoded = task.encode(rows, processor, True)
    lengths = encoded["length"]
    assert lengths[0] < lengths[1]
    singles = [task.collate({name: [values[i]] for name, values in encoded.items()}, processor) for i in (0, 1)]
    return task.collate(encoded, processor), singles


def pixels(model):
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    torch.manual_seed(2)
    images, labels = torch.randn(2, getattr(config, "num_channels", 3), height, width), torch.tensor([[1], [2]])
    singles = [Batch({"pixel_values": images[i : i + 1]}, labels[i : i + 1]) for i in (0, 1)]
    return Batch({"pixel_values": images}, labels), singles


@torch.no_grad()
def decisions(model, task, batch):
    return task.decisions(model(**batch.inputs), batch)


def largest_change(model, task, batch, singles):
    """The change of a row's allowed logits due to the other row in the batch, in units of their deviation."""
    together, changes = decisions(model, task, batch), []
    for i, single in enumerate(singles):
        alone = decisions(model, task, single)[0]
        allowed = torch.ones_like(alone, dtype=torch.bool) if single.mask is None else single.mask[0]
        changes.append((together[i, :, : alone.shape[-1]] - alone)[allowed].abs().max().item())
    allowed = torch.ones_like(together, dtype=torch.bool) if batch.mask is None else batch.mask
    spread = together[allowed].std().item()
    assert np.isfinite(spread)
    assert spread > 0
    return max(changes) / spread


def check_training(model, task, batch, parts, caplog):
    caplog.set_level(logging.ERROR)
    freeze_unused(model, task, batch, DistContext(), "float32", "")
    model.train()
    for part in parts:
        model.zero_grad(set_to_none=True)
        logits = task.decisions(model(**part.inputs), part)
        distillation_loss(logits, None, part.labels, alpha=0.0, temperature=1.0, mask=part.mask).loss.backward()
        left = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
        assert not left, "these get no gradient from every row"


def check_saved(model, task, batch, tokenizer, folder):
    model.save_pretrained(folder)
    spec = ModelConfig(pretrained=str(folder), tokenizer=tokenizer)
    again = load_model(open_model(spec, task, "model"), 0).eval()
    written, read = model.state_dict(), again.state_dict()
    assert written.keys() == read.keys()
    assert all(torch.equal(read[name], value) for name, value in written.items())
    # A convolution can round otherwise where the same weights begin at another place in memory.
    torch.testing.assert_close(decisions(again, task, batch), decisions(model, task, batch), rtol=0, atol=1e-5)


def check_head(model, task, batch):
    with autocast(CPU, "bfloat16"):
        assert decisions(model, task, batch).dtype == torch.float32


def kinds_under_test(mapping):
    tested = [kind for kind in kinds(mapping) if kind not in LEFT_OUT[mapping]]
    return [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.slow) for kind in tested]


def check_text(kind, mapping, task, rows, tokenizer, folder, caplog):
    model, processor = opened(kind, task, tokenizer)
    lively(model)
    batch, singles = tokens(task, rows, processor)
    change = largest_change(model, task, batch, singles)
    if kind in PADDING_CHANGES[mapping]:
        assert change > 0.01, "it may leave the list"
        return
    assert change < 1e-3
    check_saved(model, task, batch, tokenizer, folder)
    check_head(model, task, batch)
    check_training(model, task, batch, [batch, *singles], caplog)


@pytest.mark.parametrize("kind", kinds_under_test("SEQUENCE_CLASSIFICATION"))
def test_text_classifier(kind, tokenizer, tmp_path, caplog):
    check_text(kind, "SEQUENCE_CLASSIFICATION", REVIEWS, TEXTS, tokenizer, tmp_path, caplog)


@pytest.mark.parametrize("kind", kinds_under_test("QUESTION_ANSWERING"))
def test_question_answering(kind, tokenizer, tmp_path, caplog):
    check_text(kind, "QUESTION_ANSWERING", QUESTIONS, ASKED, tokenizer, tmp_path, caplog)


@pytest.mark.parametrize("kind", kinds_under_test("IMAGE_CLASSIFICATION"))
def test_image_classifier(kind, tmp_path, caplog):
    model, _ = opened(kind, PICTURES, None)
    batch, singles = pixels(model)
    assert largest_change(model, PICTURES, batch, singles) < 1e-2
    check_saved(model, PICTURES, batch, None, tmp_path)
    check_head(model, PICTURES, batch)
    check_training(model, PICTURES, batch, [batch], caplog)  # BatchNorm takes no row alone


@pytest.mark.parametrize("mapping", LEFT_OUT)
def test_what_is_left_out_exists(mapping):
    for listed in (LEFT_OUT[mapping], PADDING_CHANGES[mapping]):
        assert listed.keys() <= kinds(mapping).keys()
