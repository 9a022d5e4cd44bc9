"""`raykd check`: checks everything that can be checked before a training, and prints what would run."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from raykd.checks.kept import say_kept
from raykd.cluster.placement import check_room
from raykd.cluster.session import check_shared, ray_session
from raykd.common.errors import HubError, own_code_checked
from raykd.common.readers import Reader, reading
from raykd.common.redaction import redact
from raykd.common.units import counted
from raykd.config.schema import Config, TrainingConfig
from raykd.data.class_names import listed
from raykd.data.split import Split
from raykd.plan.job import Job
from raykd.plan.prepare import Member, Prepared, check_output, keep_prepared, load_and_encode
from raykd.plan.trainings import FINETUNE, same_training, student_jobs, teacher_jobs
from raykd.search.ignored import ignored_values
from raykd.search.space import Space
from raykd.tasks.common import Task
from raykd.tracking.also import check_also, where
from raykd.tracking.mlflow_store import tracking_uri
from raykd.tracking.results import SAME_MODEL

Say = Callable[[str], None]
_FEW_ROWS = 300  # of the test split: a 95% interval of a share of 50% is then 6 points to each side


@own_code_checked()
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
            task, splits, members = load_and_encode(config, missing)
            break
        except HubError as error:
            if not offline:
                raise
            missing[error.key] = error
    _say_data(say, task, splits, members.get("student.model"))
    prepared = None if missing else keep_prepared(config, task, splits, members)
    _say_runs(config, say, prepared)
    if prepared and task.predicts_tokens and config.logits.mode == "stored":
        say_kept(config, prepared, say)
    if space:
        _check_models(space, prepared, offline, missing)
        _say_sweep(space, say)
    say(f"MLflow: {redact(uri)}")
    for line in where(config):
        say(line)
    say(f"files: {config.folder}, store: {config.store}")
    if began is not None or config.ray.cluster:
        _check_cluster(config, prepared, console, say, began)
    if missing:
        say("not checked (hub unreachable and not cached):")
        for key, unmet in missing.items():
            say(f"  {key} = {redact(unmet.value)}")
        say("everything else is valid")
    else:
        say("everything is valid")


def _say_data(say: Say, task: Task, splits: Mapping[str, Split], student: Member | None) -> None:
    for name, split in splits.items():
        encoded = f", {len(student.splits[name].open())} encoded for the student" if student else ""
        say(f"data.{name}: {counted(len(split.rows), 'row')}{encoded}")
    if task.share and "test" in splits and (few := len(splits["test"].rows)) < _FEW_ROWS:
        points = 98 / few**0.5  # half of the 95% interval of a share of 50%, in percent
        metric = task.primary_metric
        say(f"data.test is small: of {counted(few, 'row')} the {metric} is known to about ±{points:.0f} points")
    if task.label_names:
        say(f"labels: {listed(task.label_names)}")


def _check_models(space: Space, prepared: Prepared | None, offline: bool, missing: dict[str, HubError]) -> None:
    """Check the models that a trial can start from. One that is not available here is added to `missing`, if `offline`.

    prepared: None if something else is not available.
    """
    if prepared is None or not any(parameter.key.startswith("student.model") for parameter in space.parameters):
        return
    from raykd.search.jobs import TrialJobs  # which imports more than other checks need

    try:
        TrialJobs(space, prepared)
    except HubError as error:
        if not offline:
            raise
        missing[error.key] = error


def _say_sweep(space: Space, say: Say) -> None:
    for arm in space.arms:
        setting = next(space.settings(arm))
        searched = ", ".join(k.rpartition(".")[2] for k in setting)
        searched = f"over {searched}" if searched else "no setting to search"
        kind = "control" if arm.control else "method"
        say(f"sweep, {kind} {arm.name}: {counted(space.trials(arm), 'trial')}, {searched}")
    for line in ignored_values(space):
        say(line)
    config = space.config
    trials, finals = sum(map(space.trials, space.arms)), len(space.arms) * config.search.seeds
    say(
        f"sweep: {counted(trials, 'trial')} on seed {config.student.seeds[0]}, then {counted(finals, 'training')} "
        "of the best settings"
    )


def _check_cluster(config: Config, prepared: Prepared | None, console: Console, say: Say, began: float | None) -> None:
    """What can only be checked on the cluster; with `began` also an estimate, for which `prepared` is needed."""
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


def _say_runs(config: Config, say: Say, prepared: Prepared | None) -> None:
    """Print the trainings. prepared: None if data or models are missing; then only what the config says."""
    by_teacher = teacher_jobs(config, prepared) if prepared else {}
    for teacher in config.teachers:
        text = "given, not trained here"
        if teacher.recipe:
            training = config.training_of(teacher.recipe.training, f"teachers.{teacher.name}.recipe.training")
            text = f"{counted(teacher.folds, 'training')} of {_length(training)}"
        if jobs := by_teacher.get(teacher.name):
            text = f"{counted(len(jobs), 'training')} of {counted(jobs[0].steps, 'step')}{_done(jobs)}"
        say(f"teacher {teacher.name}: {text}")
    length = _length(config.training_of(config.student.training, "student.training"))
    baselines = student_jobs(config, prepared, FINETUNE, (), "baseline") if prepared else []
    if baselines:
        length = counted(baselines[0].steps, "step")
    seeds = config.student.seeds
    each = f"{counted(len(seeds), 'training')} of {length}"
    of_seeds = f", seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    if config.baseline:
        say(f"baseline: {each}{_done(baselines)}{of_seeds}")
        for job in baselines:
            if same := same_training(job, by_teacher):
                say(f"  {job.name} {SAME_MODEL.format(same)} Set teachers.{same}.recipe.seed to another one.")
    method = config.method
    source = f"distilled from {method.teacher or counted(len(config.teachers), 'teacher')}"
    source = source if method.distils else "without teachers"
    done = "" if method.distils or not prepared else _done(student_jobs(config, prepared, method, ()))
    workers = f", {config.student.workers} workers" if config.student.workers > 1 else ""
    say(f"student: {config.method_label}, {source}, {each}{done}{of_seeds}{workers}")
    if config.student.num_gpus == "auto":
        sweep = "a sweep measures how many trials can share a GPU when it starts; an estimate takes one GPU for each"
        alone = "one GPU for each training, if there are any; only a sweep measures how many can share one"
        say(f"student.num_gpus = auto: {sweep if 'search' in config.model_fields_set else alone}")


def _done(jobs: Sequence[Job]) -> str:
    return f", {sum(job.done for job in jobs)} done already" if jobs else ""


def _length(training: TrainingConfig) -> str:
    return f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"
