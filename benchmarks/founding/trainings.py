"""The settings and all of their trainings, each run once and kept as a line of a file."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykd.common.ranks import DistContext
from raykd.config.load import build, override, parse_override, read_yaml
from raykd.config.methods import Method
from raykd.data.encoding import id_column
from raykd.experiment.disagreement import measure
from raykd.experiment.scoring import score_teachers
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.training.loop import train

WS = (0.0, 0.25, 0.5, 0.75)  # and 1, which is KD
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
    """One table. tree: the job without teachers; teacher: what each one has in common; folds: of the second half."""

    name: str
    tree: dict[str, Any]
    teacher: dict[str, Any]
    alpha: float
    temperature: float
    folds: int = 4


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


class Known:
    """What was trained so far, by name: (validation score, test scores of the rows)."""

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines = {line["name"]: line for line in map(json.loads, lines)}
        self.seconds = 0.0

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make and keep what is not known yet. Raises TimeoutError if there is no time for it."""
        if name in self.lines:
            return
        if time.time() > self.until:
            raise TimeoutError(name)
        since = time.process_time()
        line = {"name": name} | make()
        self.seconds += time.process_time() - since
        self.lines[name] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def validation(self, name: str) -> tuple[float, float]:
        return tuple(self.lines[name]["validation"])

    def test(self, name: str) -> np.ndarray:
        return np.asarray(self.lines[name]["test"], float)


def scores_of(validation: dict[str, float], test: np.ndarray, metric: str) -> dict[str, Any]:
    # Second, for ties: the negative log-likelihood, where the task has one.
    return {"validation": [validation[metric], -validation.get("nll", 0.0)], "test": np.round(test, 4).tolist()}


def run(job: Job) -> None:
    if not job.done:
        for _ in train(job, DistContext()):
            pass


def trained(job: Job) -> dict[str, Any]:
    """Train a student and forget its model."""
    run(job)
    result = job.result()
    with np.load(job.folder / "scores.npz") as scores:
        test = scores["test"]
    line = scores_of(result["generations"][result["best"]]["validation"], test, result["headline"])
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
        metric = self.prepared.task.primary_metric
        found = score_teachers(self.prepared, self.served, LogitStore.of(self.config))
        changed = measure(self.prepared, self.served, LogitStore.of(self.config), "decision")
        shares = {"changed": changed.changed, "all_wrong": changed.all_wrong}
        return [scores_of(one["validation"].metrics, one["test"].scores, metric) | shares for one in found]

    def student(self, method: dict[str, Any], seed: int) -> Job:
        student = self.config.student.model_copy(update={"seed": [seed]})
        config = self.config.model_copy(update={"student": student})
        given = Method.model_validate(method)
        [job] = student_jobs(config, self.prepared, given, self.served if given.distils else [])
        return job


def all_of(setting: Setting, sets: int, seeds: int, output: Path, known: Known) -> Iterator[int]:
    """Train everything, set by set. Yields the number of each set that is complete."""
    axes: dict[str, Any] = {"alpha": setting.alpha, "temperature": setting.temperature}
    for number in range(sets):
        for folds in (1, setting.folds):
            at = f"{setting.name} | set {number + 1} | folds {folds}"
            taught_by = None

            def teachers(folds: int = folds, number: int = number) -> TeacherSet:
                nonlocal taught_by
                taught_by = taught_by or TeacherSet(setting, number, folds, output)
                return taught_by

            for i in range(TEACHERS + 1):
                name = f"teacher-{i + 1}" if i < TEACHERS else "ensemble"
                known.get(f"{at} | {name}", lambda i=i, of=teachers: of().scores()[i])  # type: ignore[misc]
            best = max(range(TEACHERS), key=lambda i: known.validation(f"{at} | teacher-{i + 1}"))
            changed = known.lines[f"{at} | ensemble"]["changed"]
            for seed in seeds_of(number, seeds):
                for row, method in CONTROLS.items():
                    control = f"{row} | seed {seed}"
                    # Without teachers, transfer rows and folds make no difference.
                    name = f"{setting.name.split(', ')[0]} | {control}"
                    known.get(name, lambda m=method, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
                for row, method in METHODS.items():
                    own = axes | method
                    if row == "annealing":
                        own["alpha"] = 1.0  # it falls to 0
                    if row == "KD from the best teacher":
                        own["teacher"] = f"teacher-{best + 1}"
                    name = f"{at} | {row} | seed {seed}"
                    known.get(name, lambda m=own, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
                for w in WS if changed else ():
                    own = axes | {"type": "weighted", "W": w}
                    name = f"{at} | W = {w:g} | seed {seed}"
                    known.get(name, lambda m=own, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
        print(f"{setting.name}: set {number + 1} done, {known.seconds:.0f} CPU seconds so far", flush=True)
        yield number


def seeds_of(number: int, seeds: int) -> range:
    """Of one set's students. Those of different sets differ, so that sets are independent."""
    return range(10_000 + 100 * number, 10_000 + 100 * number + seeds)
