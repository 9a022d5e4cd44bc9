"""Tiny real things to train on: tokenizers, models' configs, data with something to learn, a job."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "good fine great lovely bad poor dull awful film plot actor scene the a is was very not it and".split()
PLACES = "paris rome oslo lima cairo tokyo quito delhi".split()
QUESTION = "where does live lives who in anna ben cleo dan eve who what city nobody lives there now".split()


def save_tokenizer(folder: Path, extra: list[str] | None = None, reverse: bool = False) -> Path:
    """A WordPiece tokenizer of whole words, saved as transformers saves one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    plain = [*WORDS, *PLACES, *QUESTION, ".", "?", *(extra or [])]
    words = list(dict.fromkeys([*special, *(plain[::-1] if reverse else plain)]))
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def electra(dropout: float = 0.1, **more: Any) -> dict[str, Any]:
    """ELECTRA's config at toy size."""
    return {
        "model_type": "electra",
        "vocab_size": 64,
        "embedding_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        **more,
    }


def bert() -> dict[str, Any]:
    """BERT's config at toy size."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 16}
    return {"model_type": "bert", "vocab_size": 64, "max_position_embeddings": 64, **sizes}


def write_reviews(folder: Path, rows: int = 120, seed: int = 0) -> Path:
    """Sentences of 4 to 12 words; the label says whether there are more good words than bad ones."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    while len(texts) < rows:
        words = rng.choice(WORDS, rng.integers(4, 13)).tolist()
        score = sum(w in WORDS[:4] for w in words) - sum(w in WORDS[4:8] for w in words)
        if score and " ".join(words) not in texts:
            texts.append(" ".join(words))
            labels.append(int(score > 0))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "train.parquet")
    return folder


def reviews_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A text classification with two ELECTRA teachers and one student, all from scratch, as a config tree."""
    write_reviews(folder / "data")
    tokenizer = str(save_tokenizer(folder / "tokenizer"))
    model = {"config": electra(), "tokenizer": tokenizer}
    return {
        "name": "reviews",
        "output": str(folder / "runs"),
        "task": {"type": "text-classification", "labels": ["bad", "good"], "max_length": 32},
        "data": {
            "source": str(folder / "data"),
            "train": "train[:60]",
            "validation": "train[60:80]",
            "test": "train[80:]",
        },
        "training": {"steps": 10, "batch_size": 8, "learning_rate": 0.005, "eval_every": 5},
        "teachers": [
            {"name": "a", "model": model, "recipe": {"seed": 1}},
            {"name": "b", "model": model, "recipe": {"seed": 2}},
        ],
        "student": {"model": model, "seed": 0},
        **sections,
    }


def write_questions(folder: Path, rows: int = 48, seed: int = 0) -> Path:
    """SQuAD v2.0's format: who lives where; a third is unanswerable, every fourth context needs two windows."""
    rng = np.random.default_rng(seed)
    people = ["anna", "ben", "cleo", "dan", "eve"]
    table: dict[str, list[Any]] = {n: [] for n in ("id", "title", "context", "question", "answers")}
    for i in range(rows):
        person = people[rng.integers(5)]
        place = PLACES[rng.integers(8)]
        filler = " ".join(rng.choice(WORDS, 40 if i % 4 == 0 else 6).tolist())
        context = f"{filler} . {person} lives in {place} ."
        asked = person if i % 3 else next(p for p in people if p != person)
        answers = {"text": [], "answer_start": []}
        if i % 3:
            answers = {"text": [place], "answer_start": [context.rindex(place)]}
        for name, value in zip(table, (f"q{i}", "t", context, f"where does {asked} live ?", answers), strict=True):
            table[name].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "train.parquet")
    return folder


def questions_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """The founding experiment at toy size: ELECTRA, same size, question answering."""
    write_questions(folder / "data")
    tokenizer = str(save_tokenizer(folder / "tokenizer"))
    model = {"config": electra(), "tokenizer": tokenizer}
    return {
        "name": "questions",
        "output": str(folder / "runs"),
        "task": {"type": "question-answering", "max_length": 40, "stride": 8},
        "data": {
            "source": str(folder / "data"),
            "train": "train[:24]",
            "validation": "train[24:36]",
            "test": "train[36:]",
        },
        "training": {"steps": 6, "batch_size": 6, "learning_rate": 0.005, "eval_every": 3},
        "teachers": [
            {"name": "a", "model": model, "recipe": {"seed": 1}},
            {"name": "b", "model": model, "recipe": {"seed": 2}},
        ],
        "student": {"model": model, "seed": 0},
        **sections,
    }


def write_entities(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """Words and BIO tags: a place is a location, two names in a row are one person; every fourth row is long."""
    rng = np.random.default_rng(seed)
    people = ["anna", "ben", "cleo", "dan", "eve"]
    tokens, tags = [], []
    for i in range(rows):
        words = rng.choice(WORDS, 40 if i % 4 == 0 else rng.integers(1, 7)).tolist()
        marks = ["O"] * len(words)
        words += [*rng.choice(people, 2).tolist(), "lives", "in", PLACES[rng.integers(8)]]
        tokens.append(words)
        tags.append([*marks, "B-person", "I-person", "O", "O", "B-location"])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"tokens": tokens, "ner_tags": tags}), folder / "train.parquet")
    return folder


def entities_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A token classification with two ELECTRA teachers and one student; rows of 40 words and more are split."""
    job = questions_job(folder, **sections)
    write_entities(folder / "data")
    return job | {"name": "entities", "task": {"type": "token-classification", "max_length": 24}}


def write_emotions(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """Sentences with any of three labels: joy and anger, of which some words tell, and loud, if they are long."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(rows):
        words = rng.choice(WORDS, rng.integers(4, 13)).tolist()
        has = {"joy": set(words) & set(WORDS[:2]), "anger": set(words) & set(WORDS[4:6]), "loud": len(words) > 9}
        texts.append(" ".join(words))
        labels.append([name for name, found in has.items() if found])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "labels": labels}), folder / "train.parquet")
    return folder


def emotions_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A multi-label classification with two ELECTRA teachers and one student."""
    job = questions_job(folder, **sections)
    write_emotions(folder / "data")
    return job | {"name": "emotions", "task": {"type": "multi-label-classification", "max_length": 24}}


def save_bytes_tokenizer(folder: Path, chat_template: str | None = None, eos: str | None = "<end>") -> Path:
    """A byte-level BPE tokenizer without merges: a token for each byte, and special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", "<user>", "<assistant>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<end>", "<user>", "<assistant>"])
    special = {"pad_token": "<pad>"} | ({"eos_token": eos} if eos else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


def llama(**more: Any) -> dict[str, Any]:
    """Llama's config at toy size. Its vocabulary is larger than `save_bytes_tokenizer`'s, as if it were padded."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    values = {"model_type": "llama", "vocab_size": 264, "max_position_embeddings": 64, **sizes}
    return values | {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True, **more}


def write_capitals(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """Prompts that name a person and a city, and completions that repeat the city."""
    rng = np.random.default_rng(seed)
    people = ["anna", "ben", "cleo", "dan", "eve"]
    places = [PLACES[rng.integers(8)] for _ in range(rows)]
    prompts = [f"{people[rng.integers(5)]} lives in {place} {i}. where?" for i, place in enumerate(places)]
    table = {"prompt": prompts, "completion": [f" {place}" for place in places], "answers": [[p] for p in places]}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "train.parquet")
    return folder


def capitals_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A text generation with two Llama teachers and one student, which share a tokenizer of bytes."""
    job = questions_job(folder, **sections)
    write_capitals(folder / "data")
    model = {"config": llama(), "tokenizer": str(save_bytes_tokenizer(folder / "bytes"))}
    for member in (*job["teachers"], job["student"]):
        member["model"] = model
    return job | {"name": "capitals", "task": {"type": "text-generation", "max_length": 64}}


def write_similarities(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """Pairs of sentences and a value from 0 to 5: 5 times the share of words that they have in common."""
    rng = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "score": []}
    for i in range(rows):
        first = rng.choice(WORDS, 6, replace=False).tolist()
        common = i % 7
        second = first[:common] + rng.choice([w for w in WORDS if w not in first], 6 - common, replace=False).tolist()
        for name, value in zip(table, (" ".join(first), " ".join(second), 5 * common / 6), strict=True):
            table[name].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "train.parquet")
    return folder


def similarities_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A regression with two ELECTRA teachers and one student."""
    job = questions_job(folder, **sections)
    write_similarities(folder / "data")
    job["data"]["columns"] = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    return job | {"name": "similarities", "task": {"type": "regression", "max_length": 24, "tolerance": 1.0}}


def write_plots(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """A question with two to four choices, of which the right one has a good word, the others a bad one."""
    rng = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {"question": [], "choices": [], "label": []}
    for i in range(rows):
        words = rng.choice(WORDS[4:8], 2 + i % 3).tolist()
        right = int(rng.integers(len(words)))
        words[right] = WORDS[rng.integers(4)]
        choices = [" ".join([word] * 3 + rng.choice(WORDS[8:], 2).tolist()) for word in words]
        for name, value in zip(table, (f"which film {i} ?", choices, right), strict=True):
            table[name].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "train.parquet")
    return folder


def plots_job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A multiple choice with two ELECTRA teachers and one student."""
    job = questions_job(folder, **sections)
    write_plots(folder / "data")
    job["training"] |= {"learning_rate": 0.02}
    return job | {"name": "plots", "task": {"type": "multiple-choice", "max_length": 16}}
