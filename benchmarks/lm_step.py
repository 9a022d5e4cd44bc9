"""How long a language model's step takes when it is taught from stored logits, compared with its peers.

    python benchmarks/lm_step.py --model FOLDER --data FOLDER [--quick]

In one process, five trainings of the same student on the same batches take turns, a step each:

- plain: fine-tuning, no teachers;
- hidden: three teachers, from the hidden states in the store;
- top_k: three teachers, from the 64 largest logits of each token in the store;
- in_process: three teachers that are run in every step, with the loss of `hidden`;
- gkd: TRL's GKDTrainer with ONE teacher on the same data (lmbda = 0). Needs trl and accelerate; else --without gkd.

A step is the batch, the forward pass, the loss, the backward pass, clipping and AdamW. The student is the model's first
layers. Peak memory is that of a process of its own that does three steps of one training. The last line is one JSON
object.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from raykd.config.load import build
from raykd.config.methods import Method
from raykd.data.encoding import id_column
from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.taught import Hidden
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.logits.keep import ALL, HIDDEN, Keep
from raykd.models.kept_logits import matmul_head
from raykd.models.loading import load_model, load_whole
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher
from raykd.teachers.serving import TeacherModel
from raykd.training.agreement import Counts
from raykd.training.loader import MicroBatch
from raykd.training.optimization import make_optimizer
from raykd.training.token_objective import TokenObjective

NAMES = ("plain", "hidden", "top_k", "in_process", "gkd")
KEPT = {"hidden": HIDDEN, "top_k": Keep("top_k", 64)}
CPU = torch.device("cpu")


def tree(model: str, data: str, rows: int, layers: int, length: int, train_on: str, folder: str) -> dict[str, Any]:
    return {
        "name": "lm_step",
        "output": folder,
        "task": {"type": "text-generation", "max_length": length, "train_on": train_on},
        "data": {
            "source": data,
            "train": f"train[:{rows}]",
            "validation": "validation[:4]",
            "test": "validation[4:8]",
        },
        "training": {"steps": 10, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-5},
        "method": {"temperature": 1.0, "pool": "probabilities"},
        "teachers": [{"name": f"t{i}", "model": model} for i in range(3)],
        "student": {"model": {"pretrained": model, "config": {"num_hidden_layers": layers}}},
    }


class Setting:
    """The prepared rows, and the store that is filled with what is kept of the teacher's logits."""

    def __init__(self, config: Any, prepared: Prepared, batch_size: int) -> None:
        self.config, self.prepared, self.batch_size = config, prepared, batch_size
        self.encoded = prepared.student.splits["train"]
        self.rows = self.encoded.open()
        self.processor, self.task = prepared.student.model.processor, prepared.task
        self.ids, self.inputs = id_column(self.rows, "row_id"), id_column(self.rows, "input_hash")

    def fill(self, keep: Keep) -> StoredLogits:
        """Three times the same teacher: the time does not depend on their values."""
        teacher = self.config.teachers[0]
        served = served_teacher(self.config, self.prepared, teacher, [], "float32")
        object.__setattr__(served, "keep", keep)
        store = LogitStore.of(self.config)
        logits = TeacherLogits(store, served.key)
        missing = logits.missing(self.ids, self.inputs)
        if len(missing):
            model = TeacherModel(served)
            model.keep_head(store)
            folds = np.full(len(missing), -1)
            logits.add(self.ids[missing], self.inputs[missing], model.logits([self.encoded.folder], missing, folds))
        return StoredLogits([TeacherLogits(store, served.key)] * 3, self.ids, [self.inputs] * 3)

    def batch(self, step: int) -> tuple[np.ndarray, Any]:
        size = self.batch_size
        positions = np.arange(step * size, (step + 1) * size) % len(self.rows)
        return positions, self.task.collate(self.rows[positions], self.processor)


class Student:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = load_model(setting.prepared.student.model, 0, setting.processor)
        self.model.train()
        self.optimizer = make_optimizer(self.model, setting.config.training)

    def finish(self, loss: torch.Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def stored_step(setting: Setting, name: str) -> Callable[[int], float]:
    student = Student(setting)
    keep = KEPT.get(name, ALL)
    stored = setting.fill(keep) if name in KEPT else None
    method = Method(type="finetune") if stored is None else Method(temperature=1.0, pool="probabilities", alpha=0.5)
    objective = TokenObjective(method, 10, keep, stored.sources if stored else [])

    def step(number: int) -> float:
        positions, batch = setting.batch(number)
        logits = torch.from_numpy(stored[positions]) if stored else None
        targets = objective.targets(MicroBatch(positions, batch, logits), CPU)
        outputs = student.model(**targets.batch.inputs)
        counts: Counts = targets.counts
        return student.finish(objective.loss(outputs, targets, counts, objective.alpha(0)).loss)

    return step


def in_process_step(setting: Setting, own_weights: bool) -> Callable[[int], float]:
    """own_weights: load the teacher three times, as three teachers would be; their time does not depend on it."""
    student = Student(setting)
    opened = setting.prepared.teachers["t0"].model
    teachers: list[Any] = [load_whole(opened, setting.processor).eval() for _ in range(3 if own_weights else 1)]
    teachers = teachers if own_weights else teachers * 3

    def step(number: int) -> float:
        _, batch = setting.batch(number)
        exists, classes = batch.mask[..., 0], batch.mask.shape[-1]
        with torch.no_grad():
            said = [teacher(**batch.inputs) for teacher in teachers]
        states = [each.states[exists] for each in said]
        heads: list[Any] = [matmul_head(each.head) for each in said]
        hidden = [Hidden(head, s.__getitem__) for head, s in zip(heads, states, strict=True)]
        outputs = student.model(**batch.inputs)
        mine = outputs.states[exists]
        weights, distill = torch.ones(3, len(mine)), torch.ones(len(mine), dtype=torch.bool)
        taught, settings = Taught(weights, distill, hidden=hidden), Settings(0.5, pool="probabilities")
        head, parameters = matmul_head(outputs.head), list(outputs.head.module.parameters())
        terms = chunked_loss(mine, head, parameters, batch.labels[exists], taught, settings, classes=classes)
        return student.finish(terms.loss)

    return step


def gkd_step(setting: Setting) -> Callable[[int], float]:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # type: ignore[import-not-found]

    folder = setting.prepared.student.model.folder
    assert folder is not None
    layers = setting.prepared.student.model.config.num_hidden_layers
    load = transformers.AutoModelForCausalLM.from_pretrained
    student = load(folder, num_hidden_layers=layers, dtype=torch.float32)
    teacher = load(folder, dtype=torch.float32)
    arguments = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=setting.batch_size,
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        gradient_checkpointing=False,
        report_to="none",
        use_cpu=True,
        bf16=False,
        learning_rate=1e-5,
    )
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    trainer = GKDTrainer(student, teacher, arguments, train_dataset=rows, processing_class=setting.processor)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    model = trainer.model

    def step(number: int) -> float:
        _, batch = setting.batch(number)
        labels = torch.full_like(batch.inputs["input_ids"], -100)
        for row, (gold, at) in enumerate(zip(batch.labels, batch.inputs["positions"], strict=True)):
            chosen = gold >= 0
            labels[row, at[chosen] + 1] = gold[chosen]
        inputs = {n: batch.inputs[n] for n in ("input_ids", "attention_mask")} | {"labels": labels}
        loss = trainer.training_step(model, inputs)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def make(name: str, setting: Setting, own_weights: bool = False) -> Callable[[int], float]:
    if name == "gkd":
        return gkd_step(setting)
    return in_process_step(setting, own_weights) if name == "in_process" else stored_step(setting, name)


def peak_gb(name: str, given: argparse.Namespace, folder: str) -> float:
    """Of a process of its own that does three steps."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--store", folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout.splitlines()[-1])


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """Median of the ratios, turn by turn, and its 95% bootstrap interval."""
    ratios, rng = np.asarray(a) / np.asarray(b), np.random.default_rng(0)
    drawn = np.median(ratios[rng.integers(len(ratios), size=(5000, len(ratios)))], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M: a local folder or a hub id")
    parser.add_argument("--data", required=True, help="prompts and completions: a local folder or a hub id")
    parser.add_argument("--layers", type=int, default=10, help="of the student")
    parser.add_argument("--length", type=int, default=256, help="most tokens in a row")
    parser.add_argument("--train-on", choices=["all", "completion"], default="all")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each training")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--cpu-time", action="store_true", help="where other work runs, too; with --threads 1")
    parser.add_argument("--quick", action="store_true", help="two timed steps, without peak memory")
    parser.add_argument("--no-peak", action="store_true", help="without peak memory")
    parser.add_argument("--without", nargs="*", default=[], choices=NAMES)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps, size = (2 if given.quick else given.steps), 4
    folder = given.store or tempfile.mkdtemp()
    rows = size * (2 if given.quick else 8)
    config = build(tree(given.model, given.data, rows, given.layers, given.length, given.train_on, folder))
    setting = Setting(config, prepare(config), size)
    if given.only:
        step = make(given.only, setting, own_weights=True)
        for number in range(3):
            step(number)
        # Not getrusage's, which a new process inherits from the one that starts it.
        high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert high_water is not None
        print(int(high_water[1]) * 1024 / 1e9)
        return

    names = [name for name in NAMES if name not in given.without]
    works = {name: make(name, setting) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    clock = time.process_time if given.cpu_time else time.perf_counter
    for number in range(steps + 1):  # the first one warms up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = clock()
            losses[name].append(works[name](number))
            if number:
                times[name].append(clock() - began)
    tokens = float(np.mean(setting.rows["decisions"])) * size
    print(
        f"{platform.machine()}, fp32, {given.threads} thread(s), torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {steps} timed steps of {size} rows, {tokens:.0f} decisions each, "
        f"{given.layers} layers, vocabulary {len(setting.processor)}; {'CPU' if given.cpu_time else 'clock'} time"
    )
    peaks = {} if given.quick or given.no_peak else {name: peak_gb(name, given, folder) for name in names}
    for name in names:
        low, high = np.percentile(times[name], [25, 75])
        peak = f", peak memory {peaks[name]:.2f} GB" if peaks else ""
        print(f"  {name:10} median {np.median(times[name]):6.2f} s a step, quartiles {low:.2f} to {high:.2f}{peak}")
    for manifest in Path(folder, "store", "logits").glob("*/manifest.json"):
        kept = json.loads(manifest.read_text())["key"]["dtype"]
        size_bytes = sum(path.stat().st_size for path in manifest.parent.glob("*.block"))
        print(f"  {kept}: {size_bytes / sum(setting.rows['decisions']):.0f} bytes a token")
    if {"hidden", "in_process"} <= {*names}:
        apart = np.abs(np.subtract(losses["hidden"], losses["in_process"])).max()
        print(f"  losses of hidden and in_process differ by at most {apart:.2g}")
    pairs = {
        "top_k_vs_plain": ("top_k", "plain"),
        "hidden_vs_plain": ("hidden", "plain"),
        "hidden_vs_in_process": ("hidden", "in_process"),
        "vs_trl_gkd": ("hidden", "gkd"),
    }
    found: dict[str, Any] = {k: ratio(times[a], times[b]) for k, (a, b) in pairs.items() if {a, b} <= {*names}}
    print(json.dumps(found | {"peak_gb": peaks}))


if __name__ == "__main__":
    main()
