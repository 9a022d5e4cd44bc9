"""The settings and all of their trainings."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from founding.known import Known
from raykd.common.hashing import fingerprint
from raykd.common.ranks import DistContext
from raykd.config.load import build, override, parse_override, read_yaml
from raykd.config.methods import Method
from raykd.data.encoding import id_column
from raykd.experiment.disagreement import measure_disagreement
from raykd.experiment.scoring import score_teachers
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.tasks import Task, make_task
from raykd.training.loop import train

WS = (0.0, 0.25, 0.5, 0.75)  # by default
TEACHERS = 3
VIT = {
    "config": {
        "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256,
    }
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {  # alpha and T are the same for all
    "KD from the best teacher": {"type": "kd"},
    "KD from the ensemble": {"type": "kd"},
    "annealing": {"type": "annealing"},
    "born-again, 3 generations": {"type": "born_again", "generations": 3},
}
CONTROLS = {"fine-tuning": {"type": "finetune"}, "label smoothing": {"type": "label_smoothing"}}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One table.

    tree: the job without teachers. teacher: what each one has in common. folds: of the second half. ws: the values of W
    that are tried besides 1, which is KD.
    """

    name: str
    tree: dict[str, Any]
    teacher: dict[str, Any]
    alpha: float
    temperature: float
    folds: int = 4
    ws: tuple[float, ...] = WS

    @property
    def key(self) -> str:
        """The name and a hash of everything above that a training can depend on."""
        return self._key(self.name, self.tree, self.teacher, self.alpha, self.temperature, self.folds)

    @property
    def control_key(self) -> str:
        """The same for trainings without teachers: transfer rows, folds and the method make no difference to them."""
        data = {name: value for name, value in self.tree["data"].items() if name != "transfer"}
        return self._key(self.name.split(", ")[0], self.tree | {"data": data})

    def _key(self, name: str, *parts: Any) -> str:
        return f"{name} #{fingerprint(list(parts))[:8]}"


def digits(labels: int, transfer: bool, quick: bool) -> Setting:
    data = {
        "source": "builtin:digits",
        "train": f"train[:{labels}]",
        "validation": "train[900:1100]",
        "test": "train[1100:]",
    } | ({"transfer": "train[600:900]"} if transfer else {})
    steps = 10 if quick else 200
    tree = {
        "task": {"type": "image-classification"},
        "data": data,
        "training": {"steps": steps, "batch_size": 64, "learning_rate": 0.005, "eval_every": max(1, steps // 2)},
        "student": {"model": VIT},
    }
    return Setting(f"{labels} labels, {'300' if transfer else 'no'} transfer rows", tree, {"model": VIT}, 0.9, 2.0)


def of_job(path: Path, overrides: Sequence[str]) -> Setting:
    tree = override(read_yaml(path), dict(parse_override(text) for text in overrides))
    teacher = {key: value for key, value in tree.pop("teachers")[0].items() if key != "name"}
    given = Method.model_validate(tree.pop("method", "weighted"))
    tree = {key: value for key, value in tree.items() if key not in ("search", "output")}
    return Setting(tree["name"], tree, teacher, given.alpha, given.temperature)


def scores_of(validation: dict[str, float], test: np.ndarray, task: Task) -> dict[str, Any]:
    """Of the primary metric, 0 to 1; and, for ties in validation, minus the loss, where the task has one."""
    whole = 100 if task.percent else 1
    first = validation[task.primary_metric] / whole
    return {"validation": [first, -validation.get("nll", 0.0)], "test": np.round(test / whole, 6).tolist()}


def run(job: Job) -> None:
    """Train it unless that is done. Two settings can have a teacher in common, which their processes meet at."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / "lock"):
        if not job.done:
            for _ in train(job, DistContext()):
                pass


def trained(job: Job) -> dict[str, Any]:
    """Train a student and forget its model."""
    run(job)
    result = job.result()
    with np.load(job.folder / "scores.npz") as scores:
        test = scores["test"]
    line = scores_of(result["generations"][result["best"]]["validation"], test, make_task(job.task, job.label_names))
    line |= {"seconds": round(result["seconds"], 2)}
    shutil.rmtree(job.folder)
    return line


class TeacherSet:
    """A set of teachers of one setting, with folds or without, trained when it is first needed."""

    def __init__(self, setting: Setting, number: int, folds: int, output: Path, count: int = TEACHERS) -> None:
        seeds = [100 * (number + 1) + i for i in range(count)]
        recipe = setting.teacher.get("recipe") or {}
        teachers = [
            setting.teacher | {"name": f"teacher-{i + 1}", "folds": folds, "recipe": recipe | {"seed": seed}}
            for i, seed in enumerate(seeds)
        ]
        name = {"name": "founding", "output": str(output)}
        self.config = build({**setting.tree, **name, "teachers": teachers, "method": "kd"})
        self.prepared: Prepared = prepare(self.config)
        self._served: list[Any] = []

    def train(self) -> list[Any]:
        """The trained teachers, ready to serve."""
        jobs = teacher_jobs(self.config, self.prepared)
        found = []
        for teacher in self.config.teachers:
            for job in jobs[teacher.name]:
                run(job)
            models = [job.result()["model"] for job in jobs[teacher.name]]
            found.append(served_teacher(self.config, self.prepared, teacher, models, "float32"))
        return found

    @property
    def served(self) -> list[Any]:
        if not self._served:
            self._served = self.train()
            for one in self._served:
                self._store(one)
        return self._served

    def _store(self, one: Any) -> None:
        """Its logits of every row, as the teacher service computes and stores them."""
        store, model = TeacherLogits(LogitStore.of(self.config), one.key), None
        for name, encoded in self.prepared.teachers[one.name].splits.items():
            rows = encoded.open()
            ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
            missing = store.missing(ids, inputs)
            folds = one.folds_of_rows(self.prepared.splits[name].ids, rows)
            for start in range(0, len(missing), 512):
                part = missing[start : start + 512]
                model = model or one.load(0)
                store.add(ids[part], inputs[part], model.logits([encoded.folder], part, folds[part]))

    def scores(self) -> list[dict[str, Any]]:
        """Of each teacher and, last, of the ensemble, with how much W can change."""
        found = score_teachers(self.prepared, self.served, LogitStore.of(self.config))
        changed = measure_disagreement(self.prepared, self.served, LogitStore.of(self.config), "decision")
        more: dict[str, Any] = {"changed": changed.changed, "all_wrong": changed.all_wrong}
        rows = found[0]["test"].predictions
        if "context" in rows[0]:  # rows of one context depend on each other
            more["contexts"] = [row["context"] for row in rows]
        task = self.prepared.task
        return [scores_of(one["validation"].metrics, one["test"].scores, task) | more for one in found]

    def student(self, method: dict[str, Any], seed: int) -> Job:
        student = self.config.student.model_copy(update={"seed": [seed]})
        config = self.config.model_copy(update={"student": student})
        given = Method.model_validate(method)
        [job] = student_jobs(config, self.prepared, given, self.served if given.distils else [])
        return job


def train_part(setting: Setting, number: int, folds: int, seeds: int, output: Path, known: Known, wait: bool) -> None:
    """Train a set of teachers, without folds or with, and its students.

    wait: for students that other processes are training; without, they are left out. Teachers are always waited for.
    """
    axes: dict[str, Any] = {"alpha": setting.alpha, "temperature": setting.temperature}
    at = f"{setting.key} | set {number + 1} | folds {folds}"
    taught_by = None

    def teachers() -> TeacherSet:
        nonlocal taught_by
        taught_by = taught_by or TeacherSet(setting, number, folds, output)
        return taught_by

    def student(name: str, method: dict[str, Any], seed: int) -> None:
        known.get(f"{name} | seed {seed}", lambda: trained(teachers().student(method, seed)), wait)

    for i in range(TEACHERS + 1):
        name = f"teacher-{i + 1}" if i < TEACHERS else "ensemble"
        known.get(f"{at} | {name}", lambda i=i: teachers().scores()[i], wait=True)  # type: ignore[misc]
    best = max(range(TEACHERS), key=lambda i: known.validation(f"{at} | teacher-{i + 1}"))
    changed = known.lines[f"{at} | ensemble"]["changed"]
    for seed in seeds_of(number, seeds):
        for row, method in CONTROLS.items():
            student(f"{setting.control_key} | {row}", method, seed)
        for row, method in METHODS.items():
            own = axes | method
            if row == "annealing":
                own["alpha"] = 1.0  # it falls to 0
            if row == "KD from the best teacher":
                own["teacher"] = f"teacher-{best + 1}"
            student(f"{at} | {row}", own, seed)
        for w in setting.ws if changed else ():
            student(f"{at} | W = {w:g}", axes | {"type": "weighted", "W": w}, seed)


def train_all(
    settings: Sequence[Setting], sets: int, seeds: int, output: Path, known: Known, process: int = 0, processes: int = 1
) -> tuple[dict[str, list[int]], list[str]]:
    """By setting, the sets that are complete; and what is missing, because there was no time for it.

    With more than one process, each starts at another place, and leaves out what the others are training.
    """
    parts = [(s, number, folds) for s in settings for number in range(sets) for folds in (1, s.folds)]
    start = process * len(parts) // processes
    missing: set[tuple[str, int]] = set()
    for setting, number, folds in parts[start:] + parts[:start]:
        try:
            train_part(setting, number, folds, seeds, output, known, wait=processes == 1)
        except TimeoutError:
            missing.add((setting.name, number))
        else:
            part = f"{setting.name}: set {number + 1} {'with' if folds > 1 else 'without'} folds"
            state = "done" if processes == 1 else "has nothing left to start"
            print(f"{part} {state}, {known.seconds:.0f} CPU seconds so far in this process", flush=True)
    complete = {s.name: [number for number in range(sets) if (s.name, number) not in missing] for s in settings}
    return complete, [f"{name}: set {number + 1}" for name, number in sorted(missing)]


def seeds_of(number: int, seeds: int) -> range:
    """Of one set's students. Those of different sets differ, so that sets are independent."""
    return range(10_000 + 100 * number, 10_000 + 100 * number + seeds)
