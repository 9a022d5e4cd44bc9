"""Whether torch.compile pays for a teacher: its blocks of rows, compiled and as they are, in turns.

    python benchmarks/teacher_compile.py --data SST2 --model MINILM [--quick]

SST-2's training rows as encoded for MiniLM, through `raykd.models.prediction` with batches of its usual size, on a GPU
in bf16 if there is one, else on a CPU with all its cores: for MiniLM and for a model of BERT-Base's shape with random
weights. On a GPU, blocks have 16,384 rows.

The last line is one JSON object. Of each model: compile_s, the seconds that the first compiled block took beyond a
plain one; compiled_of_plain, the ratio of the times of a block, the median over the rounds, with its quartiles; and
pays_after_s, the seconds of plain work after which compiling has paid (null: never).
"""

import copy
import json
import tempfile
import time

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.common.versions import processor_name
from raykd.models.inputs import InputRows
from raykd.models.prediction import Inference, predict_rows
from raykd.models.torch_compile import compiled_for_all_shapes
from sst2 import arguments, prepared_sst2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="MiniLM alone, small blocks, three rounds")
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), "bfloat16" if gpu else "float32"
    with tempfile.TemporaryDirectory() as output:
        prepared = prepared_sst2(given, output)
        rows = InputRows(prepared.student.splits["train"].open(), prepared.task)
        minilm = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2, dtype=torch.float32)
        base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=2))
        said: dict[str, object] = {"machine": torch.cuda.get_device_name() if gpu else processor_name()}
        said |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        for name, model, count in (("MiniLM", minilm, 512), ("BERT-Base", base, 128))[: 1 if given.quick else 2]:
            model.eval().to(device)
            plain, compiled = (
                Inference([each], prepared.task, prepared.student.model.processor, device, dtype)
                for each in (copy.deepcopy(model), compiled_for_all_shapes(model))
            )
            size = (16384 if gpu else count) // (4 if given.quick else 1)
            said[name] = compared(plain, compiled, rows, size, 3 if given.quick else given.rounds)
    print(json.dumps(said))


def compared(plain: Inference, compiled: Inference, rows: InputRows, size: int, rounds: int) -> dict[str, object]:
    """size: rows of a block. Each round has a block of its own."""
    rng = np.random.default_rng(0)

    def seconds(inference: Inference, block: np.ndarray) -> float:
        began = time.perf_counter()
        predict_rows(inference, rows, block)
        return time.perf_counter() - began

    first = rng.permutation(len(rows))[:size]
    seconds(plain, first[: size // 8])
    compile_s = -seconds(plain, first) + seconds(compiled, first)
    times = []
    for number in range(rounds):
        block = rng.permutation(len(rows))[:size]
        order = (plain, compiled) if number % 2 else (compiled, plain)
        took = {id(each): seconds(each, block) for each in order}
        times.append((took[id(plain)], took[id(compiled)]))
    of_plain, of_compiled = np.array(times).T
    low, middle, high = np.quantile(of_compiled / of_plain, [0.25, 0.5, 0.75])
    print(f"  compiling {compile_s:.0f} s; {middle:.3f} of the time ({low:.3f} to {high:.3f})")
    return {
        "compile_s": round(compile_s, 1),
        "compiled_of_plain": [round(float(q), 3) for q in (middle, low, high)],
        "rows_per_s": [round(size / float(np.median(t)), 1) for t in (of_plain, of_compiled)],
        "pays_after_s": round(compile_s / (1 - middle)) if middle < 1 else None,
    }


if __name__ == "__main__":
    main()
