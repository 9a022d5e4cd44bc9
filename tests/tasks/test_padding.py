"""Rows in a padded batch: padded on the tokenizer's side, with the same decisions as alone."""

import numpy as np
import pytest
import torch
import transformers
from tiny import save_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.identity import processor_digest
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.prediction import Inference, PendingLogits
from raykd.tasks import make_task
from raykd.training.compiled import with_repeated_lengths

CPU = torch.device("cpu")
REVIEWS = make_task(TaskConfig(type="text-classification", labels=["a", "b"], max_length=32), ["a", "b"])
WORDS = make_task(TaskConfig(type="token-classification", labels=["a", "b"], max_length=32), ["a", "b"])
QUESTIONS = make_task(TaskConfig(type="question-answering", max_length=32, stride=4))
LAYOUTS = {"last": ("$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"), "bare": ("$A", "$A $B:1")}


def tokenizer_folder(folder, side, layout=None):
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder))
    if layout:
        single, pair = LAYOUTS[layout]
        special = [("[CLS]", 2), ("[SEP]", 3)]
        post = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = post
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side  # saved only with the second
    tokenizer.save_pretrained(folder)
    return folder


def lively(model):
    """Weights large enough that a wrong position or token shows in the logits."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def logits(model, task, rows, processor):
    return PendingLogits(Inference([model], task, processor, CPU), rows).get()


def one(rows, i):
    return {name: values[i : i + 1] for name, values in rows.items()}


TEXTS = {"text": ["good film", "bad plot and a very dull scene it is not great"], "label": [1, 0]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_padded_on_the_tokenizers_side(tmp_path, side):
    processor = AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path, side))
    processor.pad_token, processor._pad_token_type_id = "?", 3  # as XLNet's
    batch = REVIEWS.collate(REVIEWS.encode(TEXTS, processor, True), processor)
    short, length = batch.inputs["attention_mask"][0].tolist(), 4
    padding = len(short) - length
    assert padding > 0
    cut = slice(0, padding) if side == "left" else slice(length, None)
    assert short[cut] == [0] * padding
    assert sum(short) == length
    assert batch.inputs["input_ids"][0, cut].tolist() == [processor.convert_tokens_to_ids("?")] * padding
    assert batch.inputs["token_type_ids"][0, cut].tolist() == [3] * padding
    assert batch.labels.tolist() == [[1], [0]]
    assert (batch.before is None) if side == "right" else (batch.before.tolist() == [padding, 0])


XLNET = {"model_type": "xlnet", "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "side", "layout"),
    [
        (XLNET, "left", "last"),
        (XLNET, "right", "last"),  # which XLNet does not allow
        (GPT2, "right", "bare"),
        (GPT2, "left", "bare"),  # which GPT-2's positions do not allow
        (LLAMA, "right", "bare"),
        (LLAMA, "left", "bare"),
        ({**LLAMA, "pad_token_id": 7}, "right", "bare"),  # another one than the tokenizer's
    ],
)
def test_a_texts_logits_do_not_depend_on_other_rows(tmp_path, config, side, layout):
    folder = str(tokenizer_folder(tmp_path / "tokenizer", side, layout))
    spec = ModelConfig(config={**config, "vocab_size": 64}, tokenizer=folder)
    opened = open_model(spec, REVIEWS, "model")
    processor = opened.processor
    model = lively(load_model(opened, 0, processor))
    rows = REVIEWS.encode(TEXTS, processor, True)
    together = logits(model, REVIEWS, rows, processor)
    for i, row in enumerate(together):
        np.testing.assert_allclose(row, logits(model, REVIEWS, one(rows, i), processor)[0], atol=2e-3)
    model.save_pretrained(tmp_path / "saved")
    saved = ModelConfig(pretrained=str(tmp_path / "saved"), tokenizer=folder)
    again = load_model(open_model(saved, REVIEWS, "model"), 0).eval()  # by its own config alone
    np.testing.assert_array_equal(together, logits(again, REVIEWS, rows, processor))


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_positions_are_the_rows_own_on_either_side(tmp_path, side):
    """Labels, mask and logits count from a row's first token, so the store's ragged rows line up."""
    processor = AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path, side))
    contexts = ["anna lives in paris .", "good film . ben lives in a very lovely city it is oslo ."]
    answers = [{"text": [t], "answer_start": [c.index(t)]} for c, t in zip(contexts, ("paris", "oslo"), strict=True)]
    raw = {"id": ["a", "b"], "question": ["where does anna live ?"] * 2, "context": contexts, "answers": answers}
    rows = QUESTIONS.encode(raw, processor, True)
    assert rows["length"][0] < rows["length"][1]
    batch, alone = QUESTIONS.collate(rows, processor), QUESTIONS.collate(one(rows, 0), processor)
    assert batch.labels[0].tolist() == alone.labels[0].tolist() == rows["labels"][0]
    width = rows["length"][0]
    assert torch.equal(batch.mask[0, :, :width], alone.mask[0])
    assert not batch.mask[0, :, width:].any()
    model = lively(transformers.AutoModelForQuestionAnswering.from_config(
        transformers.AutoConfig.for_model(**LLAMA, vocab_size=64)
    ))  # fmt: skip
    together = logits(model, QUESTIONS, rows, processor)
    assert [row.shape for row in together] == [(2, length) for length in rows["length"]]
    compiled = with_repeated_lengths(QUESTIONS)
    wider = compiled.collate(rows, processor)
    assert wider.inputs["input_ids"].shape[1] in (16, 32)
    assert torch.equal(wider.mask, batch.mask)
    repeated = logits(model, compiled, rows, processor)
    for i, row in enumerate(together):
        np.testing.assert_allclose(row, logits(model, QUESTIONS, one(rows, i), processor)[0], atol=2e-3)
        np.testing.assert_allclose(row, repeated[i], atol=2e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_decisions_are_the_same_in_batches_of_repeated_lengths(tmp_path, side):
    processor = AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path, side))
    texts = [["good", "film"], ["bad", "plot", "and", "a", "very", "dull", "scene"]]
    rows = WORDS.encode({"tokens": texts, "ner_tags": [[0, 1], [1, 0, 0, 1, 0, 1, 1]]}, processor, True)
    model = lively(transformers.AutoModelForTokenClassification.from_config(
        transformers.AutoConfig.for_model(**LLAMA, vocab_size=64)
    ))  # fmt: skip
    compiled = with_repeated_lengths(WORDS)
    batch, wider = WORDS.collate(rows, processor), compiled.collate(rows, processor)
    assert batch.inputs["input_ids"].shape[1] < wider.inputs["input_ids"].shape[1] == 16
    assert torch.equal(batch.labels, wider.labels)
    for row, same in zip(*(logits(model, task, rows, processor) for task in (WORDS, compiled)), strict=True):
        np.testing.assert_allclose(row, same, atol=2e-3)


def test_rows_once_padded_on_the_wrong_side_are_not_taken_for_these(tmp_path):
    """XLNet's rows used to be padded on the right, so their logits were another model's."""
    folder = str(tokenizer_folder(tmp_path / "tokenizer", "right"))
    xlnet, gpt2 = (
        open_model(ModelConfig(config=config, tokenizer=folder), REVIEWS, "model").processor for config in (XLNET, GPT2)
    )
    assert (xlnet.padding_side, gpt2.padding_side) == ("left", "right")
    assert processor_digest(xlnet) != processor_digest(gpt2)
    assert processor_digest(gpt2) == processor_digest(AutoTokenizer.from_pretrained(folder))
    xlnet.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").padding_side == "left"
