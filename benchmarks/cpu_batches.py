"""How many rows per second a teacher computes on a CPU, by the number of tokens in a batch.

    python benchmarks/cpu_batches.py --data SST2 --model MINILM [--quick]
    python benchmarks/cpu_batches.py ... --language-model SMOLLM2 --prompts SQUAD_PROMPTS

Batches of 512 to 16,384 tokens in turns, for blocks of rows: SST-2's training rows, for MiniLM and for a model of
BERT-Base's shape with random weights, each with one thread and with two; with two threads also pictures of 224 x 224
(196 tokens each) for ViT-S's shape with random weights, and, if it is given, a language model's hidden states for
prompts and completions of at most 256 tokens.

The last line is one JSON object. Of each model and number of threads, by tokens: the seconds divided by those with
16,384 tokens, the median over the rounds, with its quartiles.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, ViTConfig, ViTForImageClassification

from lm_step import KEPT, Setting, tree
from raykd.common.threads import torch_threads
from raykd.common.versions import processor_name
from raykd.config.load import build
from raykd.models.inputs import InputRows
from raykd.models.loading import load_whole
from raykd.models.prediction import BATCH_TOKENS, Inference, predict_rows
from raykd.plan.prepare import prepare
from sst2 import arguments, prepared_sst2

TOKENS = (512, 1024, 2048, 4096, BATCH_TOKENS)
PATCHES = 196  # of a picture of 224 x 224


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--language-model", help="SmolLM2-135M: a local folder or a hub id")
    parser.add_argument("--prompts", help="prompts and completions for it: a local folder or a hub id")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="blocks of an eighth of the rows, two rounds")
    given = parser.parse_args()
    rounds, share = 2 if given.quick else given.rounds, 8 if given.quick else 1
    said: dict[str, object] = {"machine": processor_name(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as output:
        prepared = prepared_sst2(given, output)
        task, processor = prepared.task, prepared.student.model.processor
        rows = InputRows(prepared.student.splits["train"].open(), task)
        minilm = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
        base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=2))
        for name, model, count in (("MiniLM", minilm, 1024), ("BERT-Base", base, 256)):
            inference = Inference([model.eval()], task, processor, torch.device("cpu"))
            for threads in (1, 2):
                with torch_threads(threads):
                    ratios = compared(partial(computed, inference, rows), len(rows), count // share, rounds)
                said[f"{name}, {threads} thread{'s' * (threads > 1)}"] = ratios
    with torch_threads(2):
        pictures = torch.randn(80 // share, 3, 224, 224)
        work = partial(looked_at, vit_small(), pictures)
        said["ViT-S, 2 threads"] = compared(work, len(pictures), len(pictures), rounds)
        if given.language_model:
            said["language model, 2 threads"] = of_states(given.language_model, given.prompts, 24 // share, rounds)
    print(json.dumps(said))


def of_states(model: str, prompts: str, count: int, rounds: int) -> dict[str, list[float]]:
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as output:
        config = build(tree(model, prompts, 400, 10, 256, "all", output))
        setting = Setting(config, prepare(config), 8)
        loaded = load_whole(setting.prepared.teachers["t0"].model, setting.processor, cpu, "float32").eval()
        inference = Inference([loaded], setting.task, setting.processor, cpu, keep=KEPT["hidden"])
        rows = InputRows(setting.rows, setting.task)
        return compared(partial(computed, inference, rows), len(rows), count, rounds)


def computed(inference: Inference, rows: InputRows, block: np.ndarray, tokens: int) -> None:
    predict_rows(inference, rows, block, tokens)


def vit_small() -> torch.nn.Module:
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    return ViTForImageClassification(ViTConfig(**shape)).eval()


@torch.inference_mode()
def looked_at(model: torch.nn.Module, pictures: torch.Tensor, block: np.ndarray, tokens: int) -> None:
    for batch in pictures[block].split(max(1, tokens // PATCHES)):
        model(pixel_values=batch)


def compared(work: Callable[[np.ndarray, int], None], rows: int, count: int, rounds: int) -> dict[str, list[float]]:
    """By tokens, quartiles of the time relative to that of the largest batches. Each round has a block of its own.

    work: computes a block of rows in batches of so many tokens.
    rows: that there are. count: of a block.
    """
    rng, seconds = np.random.default_rng(0), {tokens: list[float]() for tokens in TOKENS}
    work(np.arange(min(count, 64)), BATCH_TOKENS)
    for number in range(rounds):
        block = rng.permutation(rows)[:count]
        for tokens in TOKENS if number % 2 else TOKENS[::-1]:
            began = time.perf_counter()
            work(block, tokens)
            seconds[tokens].append(time.perf_counter() - began)
    found = {}
    for tokens, times in seconds.items():
        low, middle, high = np.quantile(np.array(times) / np.array(seconds[BATCH_TOKENS]), [0.25, 0.5, 0.75])
        print(f"  {tokens} tokens: {count / np.median(times):.1f} rows/s, {middle:.3f} ({low:.3f} to {high:.3f})")
        found[str(tokens)] = [round(float(q), 3) for q in (middle, low, high)]
    return found


if __name__ == "__main__":
    main()
