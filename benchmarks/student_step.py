"""How long a student's step takes, compared with transformers.Trainer, and with three stored teachers.

    python benchmarks/student_step.py --data PATH_OR_HUB_ID --model PATH_OR_HUB_ID [--quick]
    python benchmarks/student_step.py ... --shape electra-large --precision bf16      # 384 tokens; wants a GPU

Three trainings of the same model on the same batches, in one process, take turns. Each does one optimizer step (data,
forward, backward, clipping, AdamW), or on a GPU several, while the others wait, so that other work on the machine
affects all of them equally. There are several rounds, each with new models and another order of turns, because the
address of a model in memory makes it a few percent faster or slower. Dropout is 0, so that raykd's and Trainer's losses
can be compared step by step. The last line is one JSON object.

peak_share: the model's FLOPs of a plain step (three times those of a forward pass, at the steps' mean width) per
second, divided by what products of large matrices reach in the same precision. Only on a GPU.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from raykd.common.ranks import DistContext, local_device
from raykd.config.load import build
from raykd.config.methods import Method
from raykd.data.batches import batch_order
from raykd.data.encoding import id_column
from raykd.logits import TeacherLogits
from raykd.models.loading import load_model
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher, student_jobs
from raykd.training import metrics
from raykd.training.events import Evaluated
from raykd.training.loop import train

WARM_STEPS = 5
GPU_TURN = 10  # steps: a turn ends when the GPU has done them all, so what a step hides behind another is seen within
SHAPES = {
    "electra-large": {
        "model_type": "electra",
        "embedding_size": 1024,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
}
SHAPE_TOKENS, JOINED = 384, 60  # tokens of a row of a shape; sentences that are joined for it
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Turns:
    """Lets several threads run in turns of `length` optimizer steps.

    times, cpu: wall and CPU seconds per step, by turn. The CPU time is the process's; the other threads only wait.
    """

    def __init__(self, names: list[str], length: int) -> None:
        self.names, self.length = names, length
        self.turn = 0
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in names}
        self.steps = dict.fromkeys(names, 0)
        self.done: set[str] = set()
        self.changed = threading.Condition()
        self.started: dict[str, tuple[float, float]] = {}

    def run(self, name: str, work: Callable[[], None]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.turn] == name)
        self.started[name] = time.perf_counter(), time.process_time()
        try:
            work()
        finally:
            with self.changed:
                self.done.add(name)
                self._next()

    def step_done(self, *_: Any) -> None:
        """Called after every optimizer step, in the thread that made it."""
        name = threading.current_thread().name
        self.steps[name] += 1
        if self.steps[name] % self.length:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = self.started[name]
        self.times[name].append((time.perf_counter() - wall) / self.length)
        self.cpu[name].append((time.process_time() - cpu) / self.length)
        with self.changed:
            self._next()
            self.changed.wait_for(lambda: self.names[self.turn] == name)
        self.started[name] = time.perf_counter(), time.process_time()

    def _next(self) -> None:
        for _ in self.names:
            self.turn = (self.turn + 1) % len(self.names)
            if self.names[self.turn] not in self.done:
                break
        self.changed.notify_all()


def job_tree(
    data: str, model: str, steps: int, folder: str, precision: str = "fp32", compiled: bool = False
) -> dict[str, Any]:
    spec = {"pretrained": model, "config": NO_DROPOUT}
    training = {
        "steps": steps,
        "batch_size": 32,
        "warmup": 0.0,
        "weight_decay": 0.0,
        "precision": precision,
        "compile": compiled,
        "eval_every": steps,
    }
    rows = 32 * steps
    return {
        "name": "student_step",
        "output": folder,
        "task": {"type": "text-classification", "labels": ["negative", "positive"]},
        "data": {
            "source": data,
            "columns": {"text": "sentence"},
            "train": f"train[:{rows}]",
            "validation": "validation[:32]",
            "test": "validation[32:64]",
        },
        "training": training,
        "teachers": [{"name": f"t{i}", "model": spec, "recipe": {"seed": i}} for i in range(3)],
        "student": {"model": spec},
    }


def of_shape(tree: dict[str, Any], shape: str, model: str, folder: Path) -> dict[str, Any]:
    """The job with a model from scratch, and with longer rows: the data's sentences, joined.

    model: whose tokenizer is used.
    """
    rows = prepare(build(tree)).splits["train"].rows
    texts, wanted = rows["text"], 32 * tree["training"]["steps"] + 64
    joined = [" ".join(texts[(7 * i + j) % len(texts)] for j in range(JOINED)) for i in range(wanted)]
    table = pa.table({"sentence": joined, "label": [i % 2 for i in range(wanted)]})
    folder.mkdir()
    pq.write_table(table, folder / "train.parquet")
    data = {"source": str(folder), "columns": {"text": "sentence"}, "train": f"train[:{wanted - 64}]"}
    data |= {"validation": f"train[{wanted - 64}:{wanted - 32}]", "test": f"train[{wanted - 32}:]"}
    spec = {"config": SHAPES[shape] | NO_DROPOUT, "tokenizer": model}
    teachers = [teacher | {"model": spec} for teacher in tree["teachers"]]
    task = tree["task"] | {"max_length": SHAPE_TOKENS}
    return tree | {"data": data, "task": task, "teachers": teachers, "student": {"model": spec}}


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of the product of two size x size matrices, the best of several."""
    a, times = torch.randn((size, size), device=device, dtype=dtype), []
    for _ in range(8):
        since = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for it
        times.append(time.perf_counter() - since)
    return 2 * size**3 / min(times)


def forward_flops(model: Any, tokens: int) -> int:
    """Of one row. Attention is computed by plain products here: torch does not count its fused kernel on a CPU."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    ids = torch.ones((1, tokens), dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=ids)
    model.set_attn_implementation(usual)
    return counter.get_total_flops()


def mean_width(prepared: Prepared, job: Any) -> int:
    """Tokens of the longest row, as a mean over the steps."""
    lengths = np.asarray(prepared.student.splits["train"].open()["length"])
    order = batch_order(lengths, 32, job.seed, True)
    return round(np.mean([lengths[next(order)].max() for _ in range(job.steps)]))


def trainer_work(prepared: Prepared, job: Any, losses: list[torch.Tensor]) -> Callable[[], None]:
    """transformers.Trainer at its defaults with logging off, on raykd's batches in raykd's order."""
    rows = prepared.student.splits["train"].open()
    lengths = np.asarray(rows["length"])
    order = batch_order(lengths, 32, job.seed, True)
    chosen = np.concatenate([next(order) for _ in range(job.steps)])
    tokens = rows.select(chosen).select_columns(["input_ids", "token_type_ids", "labels"])
    tokens = tokens.map(lambda r: {"labels": r["labels"][0], "attention_mask": [1] * len(r["input_ids"])})
    model = load_model(prepared.student.model, job.seed)

    class Recording(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(tokens)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            losses.append(loss.detach())  # read at the end, because Trainer itself does not wait for it
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        max_steps=job.steps,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        bf16=job.training.precision == "bf16",
        seed=job.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Recording(
        model=model,
        args=arguments,
        train_dataset=tokens,
        data_collator=transformers.DataCollatorWithPadding(prepared.student.model.processor),
    )
    return lambda: trainer.train() and None


def raykd_work(job: Any, losses: list[torch.Tensor]) -> Callable[[], None]:
    def work() -> None:
        for event in train(job, DistContext(device=local_device(1))):
            if isinstance(event, Evaluated):
                losses.extend(torch.tensor(values["loss"]) for _, values in event.history)
                return  # what follows is no step

    return work


def store_teachers(config: Any, prepared: Prepared) -> list[Any]:
    """Random logits of three teachers for every row, since the time to read them does not depend on their values."""
    rows = prepared.student.splits["train"].open()
    served = []
    for i, teacher in enumerate(config.teachers):
        start = config.student.model.pretrained
        one = served_teacher(config, prepared, teacher, [start] if start else [], "float32")
        object.__setattr__(one, "digests", (f"made up {i}",))
        logits = np.random.default_rng(i).normal(size=(len(rows), 1, 2)).astype(np.float16)
        store = TeacherLogits(config.store / "logits", one.key)
        ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
        missing = store.missing(ids, inputs)
        for first in range(0, len(missing), 1024):
            part = missing[first : first + 1024]
            store.add(ids[part], inputs[part], list(logits[part]))
        served.append(one)
    return served


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """a, b: (rounds, turns) seconds. Median of the ratios a / b, turn by turn, and its 95% bootstrap interval.

    Rounds are drawn anew, and turns within each: those of one round have more in common than their number says.
    """
    ratios, rng = a / b, np.random.default_rng(0)
    rounds, turns = ratios.shape
    drawn = rng.integers(rounds, size=(5000, rounds, 1)), rng.integers(turns, size=(5000, rounds, turns))
    low, high = np.percentile(np.median(ratios[drawn], axis=(1, 2)), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def one_round(works: dict[str, Callable[[], None]], order: list[str], length: int, torch_threads: int) -> Turns:
    """Runs the trainings to their end, in turns. Raises the error of one that fails."""
    turns = Turns(order, length)
    hook = register_optimizer_step_post_hook(turns.step_done)
    failures: list[Exception] = []

    def run(name: str) -> None:
        torch.set_num_threads(torch_threads)  # OpenMP's setting is per thread
        try:
            turns.run(name, works[name])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,), name=name) for name in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    if failures:
        raise failures[0]
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="of each training, a round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all three")
    parser.add_argument("--shape", choices=SHAPES, help="a model from scratch, with the tokenizer of --model")
    parser.add_argument("--compile", action="store_true", help="raykd's two with training.compile; more warm steps")
    parser.add_argument("--quick", action="store_true", help="one short round, within two minutes")
    given = parser.parse_args()
    # One GPU for all three, before CUDA starts: Trainer would take all that it sees, with a batch for each.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    steps, rounds = (25, 1) if given.quick else (given.steps, given.rounds)
    on_gpu = torch.cuda.is_available()
    length = GPU_TURN if on_gpu else 1
    steps, warm = steps // length * length, -(-WARM_STEPS // length)
    if given.compile:  # on a GPU, a graph is recorded for each length that is new
        steps, warm = (2 if given.quick else 3) * steps, steps // length

    metrics.LOGGED_STEPS = steps  # every loss is compared
    names = ["trainer", "plain", "stored"]
    losses: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        tree = job_tree(given.data, given.model, steps, folder, given.precision, given.compile)
        if given.shape:
            tree = of_shape(tree, given.shape, given.model, Path(folder) / "joined")
        config = build(tree)
        prepared = prepare(config)
        plain = student_jobs(config, prepared, Method(type="finetune"), ())[0]
        kd = Method(type="weighted", W=0.75, alpha=0.5, temperature=2.0)
        stored = student_jobs(config, prepared, kd, store_teachers(config, prepared))[0]
        for number in range(rounds):
            for job in (plain, stored):  # the checkpoint of the previous round
                shutil.rmtree(job.folder, ignore_errors=True)
            if given.compile:  # torch compiles a function only so many times in one process
                torch.compiler.reset()
            works = {
                "trainer": trainer_work(prepared, plain, losses["trainer"]),
                "plain": raykd_work(plain, losses["plain"]),
                "stored": raykd_work(stored, losses["stored"]),
            }
            order = names[number % 3 :] + names[: number % 3]
            turns = one_round(works, order[:: 1 if number % 2 else -1], length, given.threads)
            for name, found in turns.times.items():
                times[name].append(found[warm:])

        peak_share = None
        if on_gpu:
            tokens = mean_width(prepared, plain)
            flops = 3 * 32 * forward_flops(load_model(prepared.student.model, 0), tokens)
            dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
            peak = matmul_peak(local_device(1), dtype)
            peak_share = flops / float(np.median(times["plain"])) / peak

    timed = {name: np.asarray(found) for name, found in times.items()}  # (rounds, turns)
    machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(
        f"{machine}, {given.precision}, {given.threads} thread(s), torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {rounds} x {steps - warm * length} timed steps of 32 rows each, {length} a turn"
    )
    for name, seconds in timed.items():
        ms = seconds * 1000
        low, high = np.percentile(ms, [25, 75])
        print(f"  {name:8} median {np.median(ms):8.1f} ms a step, quartiles {low:.1f} to {high:.1f}")
    versus, versus_low, versus_high = ratio(timed["plain"], timed["trainer"])
    with_teachers, low, high = ratio(timed["stored"], timed["plain"])
    curves = {name: torch.stack(losses[name]).double().cpu() for name in ("plain", "trainer")}
    difference = float((curves["plain"] - curves["trainer"]).abs().max())
    print(f"  raykd / Trainer: {versus:.4f} (95% {versus_low:.4f} to {versus_high:.4f})")
    if peak_share is not None:
        print(f"  {peak_share:.1%} of {peak / 1e12:.4g} TFLOP/s ({given.precision}), at {tokens} tokens a row")
    print(f"  three stored teachers / none: {with_teachers:.4f} (95% {low:.4f} to {high:.4f})")
    print(
        json.dumps(
            {
                "step_vs_trainer": versus,
                "step_vs_trainer_upper": versus_high,
                "stored_vs_plain": with_teachers,
                "loss_difference": difference,
                "peak_share": peak_share,
                "device": machine,
            }
        )
    )


if __name__ == "__main__":
    main()
