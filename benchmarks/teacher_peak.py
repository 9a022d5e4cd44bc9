"""A large teacher's forward passes as a share of what the machine's matmuls reach.

    python benchmarks/teacher_peak.py --data SST2 --model MINILM [--quick]

A model of ELECTRA-Large's shape with random weights, on rows of 384 tokens (SST-2's sentences, joined), through
`raykd.models.prediction` as a teacher computes a block, by the number of tokens in a batch: on a GPU in bf16, else on a
CPU in fp32, for a few rows.

The last line is one JSON object. share_of_peak, by tokens of a batch: model FLOPs per second / FLOP/s of a large
matmul, which is measured beside it in each round; the median over the rounds, with the lowest and the highest.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.common.versions import processor_name
from raykd.config.load import build
from raykd.models.inputs import InputRows
from raykd.models.prediction import Inference, predict_rows
from raykd.plan.prepare import prepare
from sst2 import arguments
from student_step import NO_DROPOUT, SHAPE_TOKENS, SHAPES, forward_flops, job_tree, matmul_peak, of_shape

SHAPE = "electra-large"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round; on a CPU of two rows, within two minutes")
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), "bfloat16" if gpu else "float32"
    count, budgets = (1024, (16384, 32768, 65536)) if gpu else (2 if given.quick else 8, (SHAPE_TOKENS, 1024))
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**SHAPES[SHAPE], **NO_DROPOUT)).eval()
    flops = count * forward_flops(model, SHAPE_TOKENS)
    shares: dict[int, list[float]] = {tokens: [] for tokens in budgets}
    with tempfile.TemporaryDirectory() as folder:
        tree = job_tree(given.data, given.model, count // 32 or 1, folder)
        prepared = prepare(build(of_shape(tree, SHAPE, given.model, Path(folder) / "joined")))
        rows = InputRows(prepared.student.splits["train"].open(), prepared.task)
        processor = prepared.student.model.processor
        inference = Inference([model.to(device)], prepared.task, processor, device, dtype)
        for tokens in budgets:
            predict_rows(inference, rows, np.arange(min(count, max(1, tokens // SHAPE_TOKENS))), tokens)  # the first
        for number in range(1 if given.quick else given.rounds):
            for tokens in budgets[:: 1 if number % 2 else -1]:
                peak = matmul_peak(device, getattr(torch, dtype), 8192 if gpu else 2048)
                began = time.perf_counter()
                predict_rows(inference, rows, np.arange(count), tokens)
                shares[tokens].append(flops / (time.perf_counter() - began) / peak)
    spread = {tokens: [float(np.median(s)), min(s), max(s)] for tokens, s in shares.items()}
    for tokens, (middle, low, high) in spread.items():
        print(f"  batches of {tokens} tokens: {middle:.1%} ({low:.1%} to {high:.1%}) of {peak / 1e12:.3g} TFLOP/s")
    machine = torch.cuda.get_device_name() if gpu else processor_name()
    print(json.dumps({"share_of_peak": spread, "dtype": dtype, "torch": torch.__version__, "device": machine}))


if __name__ == "__main__":
    main()
