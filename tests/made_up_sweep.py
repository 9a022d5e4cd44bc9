"""Made-up experiments, logged to a real MLflow store as raykd logs real ones: what a report is made from."""

import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykd.config.methods import Method
from raykd.tracking.experiment import Tracking
from raykd.tracking.run import Run

SETTINGS: dict[str, list[dict[str, Any]]] = {  # what the trials of each arm try, the best one first
    "finetune": [{}],
    "label_smoothing": [{"epsilon": 0.1}, {"epsilon": 0.2}],
    "kd from a": [{"alpha": 0.5, "temperature": 2.0}, {"alpha": 0.9, "temperature": 4.0}],
    "kd": [{"alpha": a, "temperature": t} for a in (0.7, 0.9) for t in (4.0, 2.0)],
    "annealing": [{"alpha": a, "temperature": 2.0} for a in (1.0, 0.7)],
    "weighted": [
        {"alpha": a, "temperature": t, "W": w}
        for w, t in ((0.5, 4.0), (0.75, 2.0), (0.25, 4.0), (0.0, 4.0), (1.0, 2.0)) for a in (0.7, 0.9)
    ],
    "born_again": [{"alpha": 0.7, "temperature": t} for t in (4.0, 2.0)],
}  # fmt: skip
SKILL = {  # shifts in the probit of an example's chance to be right
    "finetune": 0.0, "label_smoothing": 0.05, "kd from a": 0.1, "kd": 0.3, "annealing": 0.33, "weighted": 0.5,
    "born_again": 0.35, "teacher": 0.1, "ensemble": 0.5,
}  # fmt: skip
STEPS, BATCH = 800, 32


class Sweep:
    """One parent run and what is below it; `examples` of validation and of test, `seeds` a final arm."""

    def __init__(
        self, uri: str, name: str = "digits", *, command: str = "sweep", seeds: int = 3, examples: int = 400,
        skill: dict[str, float] | None = None, percent: bool = False, rng: int = 0, **tags: str,
    ) -> None:  # fmt: skip
        self.rng = np.random.default_rng(rng)
        self.tracking, self.seeds, self.percent = Tracking(uri, name), seeds, percent
        self.primary_metric = "f1" if percent else "accuracy"
        self.skill = SKILL | (skill or {})
        self.easy = {split: self.rng.normal(1.2, 1.3, examples) for split in ("validation", "test")}
        about = {
            "raykd.role": "experiment", "raykd.command": command, "raykd.version": "0.1.0",
            "raykd.task": "question-answering" if percent else "image-classification",
            "raykd.headline": self.primary_metric, "raykd.percent": str(percent).lower(),
        }  # fmt: skip
        if command == "sweep":
            about |= {"raykd.metric": self.primary_metric, "raykd.algorithm": "random"}
        self.parent = self.tracking.start(f"{name} {command}", params=params("kd"), tags=about | tags)
        self.id = self.parent.id

    def child(self, name: str, role: str, method: str, setting: dict[str, Any] | None = None, **tags: str) -> Run:
        """A run whose tags' dots are written as __."""
        known = {"raykd.role": role} | {key.replace("__", "."): value for key, value in tags.items()}
        return self.tracking.start(name, params=params(method, setting), tags=known, parent=self.parent)

    def score(self, run: Run, skill: float, *, spread: float = 0.05, left_out: Sequence[str] = ()) -> None:
        """Final metrics and predictions of a model of that skill."""
        shift = skill + self.rng.normal(0, spread)
        with tempfile.TemporaryDirectory() as folder:
            for split, easy in self.easy.items():
                right = (easy + shift + self.rng.normal(0, 0.5, len(easy)) > 0).astype(float)
                scores = right * (100.0 if self.percent else 1.0)
                run.log({f"final_{split}/{self.primary_metric}": scores.mean(), f"final_{split}/nll": 0.3}, 0)
                if not self.percent:
                    run.log({f"final_{split}/ece": 0.02 + 0.01 * self.rng.random()}, 0)
                if split not in left_out:
                    path = Path(folder) / f"predictions-{split}.jsonl.gz"
                    with gzip.open(path, "wt") as file:
                        file.writelines(json.dumps(self.row(i, s)) + "\n" for i, s in enumerate(scores))
                    run.artifact(path)

    def row(self, i: int, score: float) -> dict[str, Any]:
        more = (
            {"context": f"context {i // 4}", "f1": score / 100} if self.percent else {"label": "x", "confidence": 0.9}
        )
        return {"id": i, "prediction": "x", "score": score, **more}

    def teachers(self, names: str = "abc", *, folds: int = 1, changed: float = 0.12, misses: int = 1500) -> None:
        """And their ensemble."""
        for i, name in enumerate(names):
            run = self.child(name, "teacher", "finetune", raykd__folds=str(folds))
            self.score(run, self.skill["teacher"] + 0.02 * i)
            filled = {"precompute/rows_per_s": 500.0, "precompute/seconds": misses / 500, "store/misses": misses}
            run.log(filled | {"store/hits": 1500 - misses, "train_right_share": 0.9}, 0)
            run.finish()
        run = self.child("ensemble", "ensemble", "finetune")
        self.score(run, self.skill["ensemble"])
        run.log({"changed_share": changed, "all_wrong_share": 0.03}, 0)
        run.finish()

    def trials(self, arms: Sequence[str] = tuple(SETTINGS), *, failed: int = 0, cut: int = 0) -> None:
        """One for each setting, and some of `weighted` more that came to nothing."""
        for arm in arms:
            for i, setting in enumerate(SETTINGS[arm]):
                run = self._trial(arm, setting, i, "finished")
                self._curve(run, self.skill[arm] - 0.05 * min(i, 4), STEPS)
                run.finish()
        for state, count in (("failed", failed), ("pruned", cut)):
            for i in range(count):
                run = self._trial("weighted", SETTINGS["weighted"][0], i, state)
                self._curve(run, -0.2, STEPS // 4)
                run.finish(*(("FAILED", "OutOfMemoryError: no room on the GPU") if state == "failed" else ()))

    def _trial(self, arm: str, setting: dict[str, Any], number: int, state: str) -> Run:
        return self.child(
            f"{arm} {number}", "trial", method_of(arm), setting | teacher_of(arm), raykd__arm=arm,
            raykd__control=str(is_control(arm)).lower(), raykd__state=state,
        )  # fmt: skip

    def _curve(self, run: Run, skill: float, steps: int) -> None:
        easy = self.easy["validation"]
        for step in range(STEPS // 8, steps + 1, STEPS // 8):
            shift = skill - 1.5 * np.exp(-3 * step / STEPS) + self.rng.normal(0, 0.05)
            value = float((easy + shift > 0).mean()) * (100.0 if self.percent else 1.0)
            run.log({f"validation/{self.primary_metric}": value, "train/loss": 1 - value / 200}, step)
        if steps == STEPS:
            run.log({f"final_validation/{self.primary_metric}": value}, 0)
        run.log({"seconds": 20.0 * steps / STEPS, "gpu_seconds": 0.0}, 0)

    def finals(
        self, arms: Sequence[str] = tuple(SETTINGS), *, left_out: Sequence[str] = (), tagged: bool = True
    ) -> None:
        """Each arm's best setting, once a seed. tagged: as a sweep does it, or as `raykd distill`."""
        for arm in arms:
            role = "baseline" if arm == "finetune" else "student"
            for seed in range(self.seeds):
                tags = {"raykd__arm": arm, "raykd__control": str(is_control(arm)).lower()} if tagged else {}
                run = self.child(
                    f"{arm} seed {seed}",
                    role,
                    method_of(arm),
                    SETTINGS[arm][0] | teacher_of(arm) | {"seed": seed},
                    **tags,
                )
                self._curve(run, self.skill[arm], STEPS)
                self.score(run, self.skill[arm], left_out=left_out)
                if arm == "born_again":
                    for generation in (1, 2, 3):
                        run.log({f"generations/test_{self.primary_metric}": 0.9 + 0.01 * (generation % 2)}, generation)
                run.finish()

    def serving(self) -> None:
        """What the teachers, their ensemble and a student cost to serve: 1, 3 and 1 ms a row."""
        for_one = {"rows": 1, "latency_ms": 1.0, "latency_p10_ms": 0.9, "latency_p90_ms": 1.1}
        costs = {}
        for name, times in {"a": 1, "b": 1, "c": 1, "ensemble": 3, "weighted seed 0": 1}.items():
            one = {key: times * value for key, value in for_one.items()} | {"throughput_rows_per_s": 1000 / times}
            batch = {key: 8 * times * value for key, value in for_one.items()} | {"throughput_rows_per_s": 1000 / times}
            size = {"parameters": 1000 * times, "size_on_disk_bytes": 4000 * times}
            costs[name] = size | {"one_row": one, "batch": batch, "device": "a CPU", "dtype": "float32"}
        self.parent.artifact_json({"models": costs}, "serving.json")

    def finish(self) -> str:
        self.parent.finish()
        return self.id


def whole_sweep(uri: str, name: str = "digits", **settings: Any) -> str:
    """Everything that a sweep logs; returns the parent's id."""
    sweep = Sweep(uri, name, **settings)
    sweep.teachers()
    sweep.trials(failed=2, cut=3)
    sweep.finals()
    sweep.serving()
    return sweep.finish()


def params(method: str, setting: dict[str, Any] | None = None) -> dict[str, Any]:
    """The flat parameters of every run, neutral where the method does not use them."""
    setting = dict(setting or {})
    seed = setting.pop("seed", 0)
    flat = {f"method.{k}": v for k, v in Method.model_validate({"type": method, **setting}).model_dump().items()}
    training = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 0.001}
    return flat | {f"training.{k}": v for k, v in training.items()} | {"seed": seed, "model": "from a config"}


def method_of(arm: str) -> str:
    return arm.split()[0]


def teacher_of(arm: str) -> dict[str, str]:
    return {"teacher": arm.split()[2]} if " from " in arm else {}


def is_control(arm: str) -> bool:
    return arm in ("finetune", "label_smoothing") or " from " in arm
