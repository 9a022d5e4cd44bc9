"""Identities that caches of earlier versions are found by. A change here orphans every user's stored logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import capitals_job, save_bytes_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raykd.config.load import build, override
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher
from raykd.tasks import make_task

TEXT = make_task(TaskConfig(type="text-classification"), ("bad", "good"))
PICTURES = make_task(TaskConfig(type="image-classification"), ("a", "b"))
BERT = {"model_type": "bert", "vocab_size": 8, "hidden_size": 4, "num_attention_heads": 1, "type_vocab_size": 1}
VIT = {"model_type": "vit", "image_size": 8, "patch_size": 2, "num_channels": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"architectures": ["BertModel"], "dtype": "float32"}))
    save_file({"weight": np.arange(4, dtype=np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def digests(spec: ModelConfig, task: Any) -> tuple[str, str]:
    opened = open_model(spec, task, "model")
    return opened.digest, opened.processor_digest


def test_identities_of_models_and_processors_stay(folder: Path) -> None:
    """The processors' are of this version of transformers: another one may save a tokenizer in another way."""
    words = "d97e89441702c373760c6dff1f76c486"
    pretrained = ModelConfig(pretrained=str(folder))
    assert digests(pretrained, TEXT) == ("c4deaf5dd51d6b99c462eb860a09a912", words)
    assert open_model(pretrained, TEXT, "model").logits_digest == "91d9b074ee6537d2d04ba0d35b624bda"
    changed = pretrained.model_copy(update={"config": {"hidden_dropout_prob": 0.5}})
    assert digests(changed, TEXT) == ("093b78bd054fb506926a5cc48e71a806", words)
    xlnet = ModelConfig(config={"model_type": "xlnet"}, tokenizer=str(folder))
    assert digests(xlnet, TEXT) == ("f026473f293a73f63860a35d6f3852d3", "f12502c50e5dc16f64cb18405bd1a378")
    pictures = "fc708826833de5a1c2acefac7b02b3f1", "bd858a15a5f5f77324489a17c536e9f4"
    assert digests(ModelConfig(config=VIT), PICTURES) == pictures
    (folder / "code.py").write_text("x = 1\n")
    trusting = pretrained.model_copy(update={"trust_remote_code": True})
    assert digests(trusting, TEXT) == ("f87055da3cfe795839c7430ed3691920", words)


def test_a_chat_template_is_part_of_what_a_teacher_answers_to(tmp_path: Path) -> None:
    """It makes the texts of messages, so other logits; of prompts and completions it makes nothing."""
    tree = capitals_job(tmp_path)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    lines = [json.dumps({"messages": [*talk, {"role": "user", "content": str(i)}, talk[1]]}) for i in range(60)]
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "train.jsonl").write_text("\n".join(lines))
    for changes, same in ({}, True), ({"data.source": str(tmp_path / "talks")}, False):
        found = set()
        for end in ("<end>", "<user>"):
            template = "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
            save_bytes_tokenizer(tmp_path / "bytes", template)
            config = build(override(tree, changes))
            found.add(served_teacher(config, prepare(config), config.teachers[0], [], "float32").preprocessing)
        assert (len(found) == 1) == same
