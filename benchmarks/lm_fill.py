"""How fast a language model's logits are computed and stored, compared with a bare loop.

    python benchmarks/lm_fill.py --model FOLDER --data FOLDER [--quick]

`fill` is what a teacher's actor does with a block: which rows are missing, the forward pass, the head, what is kept of
each token (`hidden`, or the 64 largest logits), and the write to the store. `bare` has the rows in memory as tensors,
pads batches of the size that raykd begins with, and computes transformers' own logits of every token, of which it keeps
nothing. They take turns, a block each. The last line is one JSON object.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from lm_step import KEPT, Setting, ratio, tree
from raykd.config.load import build
from raykd.logits import LogitStore, TeacherLogits
from raykd.logits.keep import Keep
from raykd.models.batching import next_batch
from raykd.models.prediction import ROWS_ON_CPU, ROWS_ON_GPU, autocast, usual_tokens
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher
from raykd.teachers.serving import TeacherModel


def fill(setting: Setting, keep: Keep, dtype: str, gpus: float) -> Callable[[np.ndarray], None]:
    served = served_teacher(setting.config, setting.prepared, setting.config.teachers[0], [], dtype)
    object.__setattr__(served, "keep", keep)
    store, model = LogitStore.of(setting.config), TeacherModel(served, gpus)
    model.keep_head(store)
    logits = TeacherLogits(store, served.key)

    def block(positions: np.ndarray) -> None:
        missing = positions[logits.missing(setting.ids[positions], setting.inputs[positions])]
        rows = model.logits([setting.encoded.folder], missing, np.full(len(missing), -1))
        logits.add(setting.ids[missing], setting.inputs[missing], rows)

    return block


def bare(setting: Setting, dtype: str, device: torch.device) -> Callable[[np.ndarray], None]:
    folder = setting.prepared.student.model.folder
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()
    rows = [torch.tensor(ids) for ids in setting.rows["input_ids"]]
    lengths = np.array([len(row) for row in rows])
    budget = usual_tokens(device)
    most = ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_GPU

    @torch.inference_mode()
    def block(positions: np.ndarray) -> None:
        order, start = np.argsort(-lengths[positions], kind="stable"), 0
        while start < len(order):
            chosen = next_batch(order, lengths[positions], start, budget, most)
            start += len(chosen)
            batch = [rows[p] for p in positions[chosen]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(device)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
            with autocast(device, dtype):
                logits = model(input_ids=ids, attention_mask=mask.to(device), use_cache=False).logits
            logits[0, 0, 0].item()  # waits for a GPU

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M: a local folder or a hub id")
    parser.add_argument("--data", required=True, help="prompts and completions: a local folder or a hub id")
    parser.add_argument("--length", type=int, default=256, help="most tokens in a row")
    parser.add_argument("--train-on", choices=["all", "completion"], default="all")
    parser.add_argument("--blocks", type=int, default=12, help="timed blocks of each")
    parser.add_argument("--rows", type=int, default=16, help="of a block")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--cpu-time", action="store_true", help="where other work runs, too; with --threads 1")
    parser.add_argument("--quick", action="store_true", help="three blocks")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda", 0) if gpu else torch.device("cpu"), "bfloat16" if gpu else "float32"
    blocks, size = (3 if given.quick else given.blocks) + 1, given.rows
    with tempfile.TemporaryDirectory() as folder:
        config = build(tree(given.model, given.data, 2 * blocks * size, 10, given.length, given.train_on, folder))
        setting = Setting(config, prepare(config), size)
        works = {name: fill(setting, keep, dtype, float(gpu)) for name, keep in KEPT.items()}
        works["bare"] = bare(setting, dtype, device)
        distinct = np.sort(np.unique(setting.ids, axis=0, return_index=True)[1])  # the store has equal rows once
        assert len(distinct) >= blocks * size
        times: dict[str, list[float]] = {name: [] for name in works}
        clock, names = time.process_time if given.cpu_time else time.perf_counter, [*works]
        for number in range(blocks):  # the first one warms up
            positions = distinct[number * size : (number + 1) * size]
            for name in names[number % 3 :] + names[: number % 3]:
                began = clock()
                works[name](positions)
                if number:
                    times[name].append(clock() - began)
        tokens = float(np.mean(setting.rows["length"])) * size
    print(
        f"{torch.cuda.get_device_name(0) if gpu else platform.machine()}, {dtype}, {given.threads} thread(s), torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {blocks - 1} timed blocks of {size} rows, "
        f"{tokens:.0f} tokens each, vocabulary {len(setting.processor)}; {'CPU' if given.cpu_time else 'clock'} time"
    )
    found: dict[str, Any] = {}
    for name, seconds in times.items():
        low, high = (tokens / s for s in np.percentile(seconds, [75, 25]))
        print(f"  {name:7} median {tokens / np.median(seconds):8.1f} tokens/s, quartiles {low:.1f} to {high:.1f}")
        if name != "bare":
            found[f"fill_{name}_vs_bare"] = ratio(times["bare"], seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
