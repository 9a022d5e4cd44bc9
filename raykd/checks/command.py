"""`raykd check`: checks everything that can be checked before a training, and prints what would run."""

import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rich.console import Console

from raykd.checks.kept import say_kept
from raykd.cluster.placement import check_room
from raykd.cluster.session import check_shared, ray_session
from raykd.common.errors import HubError
from raykd.common.readers import Reader, reading
from raykd.common.redaction import redact
from raykd.config.schema import Config, TrainingConfig
from raykd.data.class_names import listed
from raykd.plan.prepare import Prepared, assemble, check_output, examine
from raykd.plan.trainings import FINETUNE, student_jobs, teacher_jobs
from raykd.search.space import Space
from raykd.tracking.also import check_also, where
from raykd.tracking.experiment import tracking_uri


def check(config: Config, console: Console, offline: bool, began: float | None = None) -> None:
    """Check the config, data and models, and print what would run. Raises ConfigError.

    offline: list what needs the hub and check the rest, instead of raising HubError.
    began: when the command was started (`time.monotonic`), to also estimate its time by measuring on the cluster; None
        for no estimate.
    """

    uri = tracking_uri(config.tracking.uri, Path(config.output))
    check_also(config)
    space = Space(config) if "search" in config.model_fields_set else None
    check_room(config)  # of this machine, if the config names no cluster
    check_output(config)
    with reading(config.store, Reader(f"raykd check {config.name}", job=config.name)):
        _check(config, space, uri, console, offline, began)


def _check(config: Config, space: Space | None, uri: str, console: Console, offline: bool, began: float | None) -> None:
    """space: of the sweep; None if the config has none. uri: MLflow's."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    missing: dict[str, HubError] = {}
    while True:
        try:
            task, splits, members = examine(config, missing)
            break
        except HubError as error:
            if not offline:
                raise
            missing[error.key] = error
    for name, split in splits.items():
        student = members.get("student.model")
        encoded = f", {len(student.splits[name].open())} encoded for the student" if student else ""
        say(f"data.{name}: {len(split.rows)} rows{encoded}")
    if task.label_names:
        say(f"labels: {listed(task.label_names)}")
    prepared = None if missing else assemble(config, task, splits, members)
    _say_runs(config, say, prepared)
    if prepared and task.predicts_tokens and config.logits.mode == "stored":
        say_kept(config, prepared, say)
    if space:
        for arm in space.arms:
            setting = next(space.settings(arm))
            searched = ", ".join(k.rpartition(".")[2] for k in setting) or "nothing"
            kind = "control" if arm.control else "method"
            say(f"sweep, {kind} {arm.name}: {space.trials(arm)} trial(s), over {searched}")
        trials, finals = sum(map(space.trials, space.arms)), len(space.arms) * config.search.seeds
        say(f"sweep: {trials} trials on seed {config.student.seeds[0]}, then {finals} trainings of the best settings")
    say(f"MLflow: {redact(uri)}")
    for line in where(config):
        say(line)
    say(f"files: {config.folder}, store: {config.store}")
    if began is not None or config.ray.cluster:
        if began is not None:  # as the other commands do, because the start is timed here
            threading.Thread(target=import_module, args=("mlflow.tracking",), daemon=True).start()
        connecting = time.monotonic()
        with ray_session(config.ray):
            check_room(config)
            check_shared(config)
            if began is not None and prepared:
                from raykd.checks.estimate import estimate

                estimate(config, prepared, console, say, began, connecting)
            elif began is not None:
                say("no estimate: it needs the models and data that could not be checked")
    if missing:
        say("not checked (hub unreachable and not cached):")
        for key, unmet in missing.items():
            say(f"  {key} = {redact(unmet.value)}")
        say("everything else is valid")
    else:
        say("everything is valid")


def _say_runs(config: Config, say: Callable[[str], None], prepared: Prepared | None) -> None:
    """Print the trainings. prepared: None if data or models are missing; then only what the config says."""
    by_teacher = teacher_jobs(config, prepared) if prepared else {}
    for teacher in config.teachers:
        text = "given, not trained here"
        if teacher.recipe:
            training = config.training_of(teacher.recipe.training, f"teachers.{teacher.name}.recipe.training")
            text = f"{teacher.folds} training(s) of {_length(training)}"
        if jobs := by_teacher.get(teacher.name):
            done = sum(job.done for job in jobs)
            text = f"{len(jobs)} training(s) of {jobs[0].steps} steps, {done} done already"
        say(f"teacher {teacher.name}: {text}")
    length = _length(config.training_of(config.student.training, "student.training"))
    if prepared:
        length = f"{student_jobs(config, prepared, FINETUNE, ())[0].steps} steps"
    each = f"{len(config.student.seeds)} training(s) of {length}, seeds {config.student.seeds}"
    if config.baseline:
        say(f"baseline: {each}")
    method, workers = config.method, config.student.workers
    source = f"distilled from {method.teacher or f'{len(config.teachers)} teachers'}"
    source = source if method.distils else "without teachers"
    say(f"student: {config.method_label}, {source}, {each}, {workers} worker(s)")


def _length(training: TrainingConfig) -> str:
    return f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"
