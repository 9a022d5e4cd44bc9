"""A tokenizer that is trained on the job's own texts, for models that start from scratch."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset

from raykd.common.atomic import new_folder
from raykd.common.hashing import fingerprint
from raykd.data.split import Split
from raykd.tasks.language_rows import kind_of

_SPECIAL = ("<pad>", "<eos>")


def trained_tokenizer(size: int, train: Split, store: Path) -> Path:
    """The folder of a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019), trained if it is new.

    size: of its vocabulary, at most.
    train: the training rows, whose texts it is trained on.
    store: the folder `output/store`, which keeps it by the content of these texts.
    """
    folder = store / "tokenizers" / fingerprint([1, size, train.digest, version("tokenizers")])
    if (folder / "tokenizer.json").exists():
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*_SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(train.rows), trainer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as draft:
        tokenizer.save(str(draft / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": _SPECIAL[0], "eos_token": _SPECIAL[1]}
        (draft / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def _texts(rows: Dataset) -> Iterator[str]:
    for role in (role for role in kind_of(rows.column_names) if role != "tools"):
        for value in rows[role]:
            if isinstance(value, str):
                yield value
            else:
                yield from (message.get("content") or "" for message in value)
