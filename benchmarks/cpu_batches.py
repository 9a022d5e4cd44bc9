"""How many rows per second a teacher computes on a CPU, by the number of tokens in a batch.

    python benchmarks/cpu_batches.py --data SST2 --model MINILM [--quick]

SST-2's training rows as encoded for MiniLM, in blocks of 1,024 rows, through `raykd.models.prediction.predict`, with
batches of 512 to 16,384 tokens in turns: for MiniLM and for a model of BERT-Base's shape with random weights, with one
thread and with two.

The last line is one JSON object. Of each model and number of threads, by tokens: the seconds divided by those with
16,384 tokens, the median over the rounds, with its quartiles.
"""

import json
import tempfile
import time

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.common.threads import torch_threads
from raykd.common.versions import processor_name
from raykd.models.inputs import InputRows
from raykd.models.prediction import BATCH_TOKENS, Inference, predict_rows
from sst2 import arguments, prepared_sst2

TOKENS = (512, 1024, 2048, 4096, BATCH_TOKENS)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="blocks of an eighth of the rows, two rounds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        prepared = prepared_sst2(given, output)
        task, processor = prepared.task, prepared.student.model.processor
        rows = InputRows(prepared.student.splits["train"].open(), task)
        minilm = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
        base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=2))
        said: dict[str, object] = {"machine": processor_name(), "torch": torch.__version__}
        for name, model, count in (("MiniLM", minilm, 1024), ("BERT-Base", base, 256)):
            inference = Inference([model.eval()], task, processor, torch.device("cpu"))
            for threads in (1, 2):
                with torch_threads(threads):
                    ratios = compared(inference, rows, count // (8 if given.quick else 1), given.rounds, given.quick)
                said[f"{name}, {threads} thread{'s' * (threads > 1)}"] = ratios
    print(json.dumps(said))


def compared(inference: Inference, rows: InputRows, count: int, rounds: int, quick: bool) -> dict[str, list[float]]:
    """By tokens, quartiles of the time relative to that of the largest batches. Each round has a block of its own."""
    rng, seconds = np.random.default_rng(0), {tokens: list[float]() for tokens in TOKENS}
    predict_rows(inference, rows, np.arange(min(count, 64)), BATCH_TOKENS)
    for number in range(2 if quick else rounds):
        block = rng.permutation(len(rows))[:count]
        for tokens in TOKENS if number % 2 else TOKENS[::-1]:
            began = time.perf_counter()
            predict_rows(inference, rows, block, tokens)
            seconds[tokens].append(time.perf_counter() - began)
    found = {}
    for tokens, times in seconds.items():
        low, middle, high = np.quantile(np.array(times) / np.array(seconds[BATCH_TOKENS]), [0.25, 0.5, 0.75])
        print(f"  {tokens} tokens: {count / np.median(times):.0f} rows/s, {middle:.3f} ({low:.3f} to {high:.3f})")
        found[str(tokens)] = [round(float(q), 3) for q in (middle, low, high)]
    return found


if __name__ == "__main__":
    main()
