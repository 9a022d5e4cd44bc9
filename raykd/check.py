"""`raykd check`: everything that can be known before a training, and what would run."""

import os

from rich.console import Console

from raykd.config import Config, ModelConfig
from raykd.errors import ConfigError
from raykd.job import Resources
from raykd.plan import FINETUNE, student_jobs, teacher_jobs
from raykd.prepare import check_training, prepare
from raykd.tasks import make_task
from raykd.tracking import tracking_uri

_HUB_REASON = "hub"


def check(config: Config, console: Console, offline: bool) -> None:
    """Print what would run. Raises ConfigError; offline, what needs the hub is listed instead."""
    from pathlib import Path

    uri = tracking_uri(config.tracking.uri, Path(config.output))
    say = lambda text: console.print(text, highlight=False)  # noqa: E731
    if offline and (needed := needs_hub(config)):
        os.environ["HF_HUB_OFFLINE"] = "1"
        check_training(config, make_task(config.task, config.task.labels or ()))
        say(f"{config.name}: the settings are consistent. Not checked, for it needs the hub:")
        for key, value in needed:
            say(f"  {key} = {value}")
        _say_plan(config, say)
        return
    prepared = prepare(config)
    for name, split in prepared.splits.items():
        fed = len(prepared.student.splits[name].open())
        say(f"data.{name}: {len(split.rows)} rows, {fed} as the student is fed them")
    if prepared.task.label_names:
        say(f"labels: {', '.join(prepared.task.label_names)}")
    by_teacher = teacher_jobs(config, prepared)
    for teacher in config.teachers:
        jobs = by_teacher.get(teacher.name, [])
        done = sum((j.folder / "result.json").exists() for j in jobs)
        what = f"{len(jobs)} training(s) of {jobs[0].steps} steps, {done} done already" if jobs else "given as it is"
        say(f"teacher {teacher.name}: {what}")
    of_student = student_jobs(config, prepared, FINETUNE, ())
    if config.baseline:
        say(f"baseline: {len(of_student)} training(s) of {of_student[0].steps} steps, seeds {config.student.seeds}")
    _say_plan(config, say)
    _check_room(config)
    say(f"MLflow: {uri}")
    say(f"files: {config.folder}, store: {config.store}")
    say("all is well")


def _say_plan(config: Config, say: object) -> None:
    assert callable(say)
    teachers = config.method.teacher or f"{len(config.teachers)} teachers"
    source = f"distilled from {teachers}" if config.method.distils else "without teachers"
    say(f"student: {config.method.label}, {source}, seeds {config.student.seeds}, {config.student.workers} worker(s)")


def _check_room(config: Config) -> None:
    """Against the cluster that is there; on this machine alone, against its cores."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    import ray

    from raykd.cluster import cluster_gpus, ray_session, slots

    if address or ray.is_initialized():
        with ray_session(config.ray):
            gpus = cluster_gpus()
            slots(Resources.of(config.student, gpus), "student.num_cpus")
            for t in config.teachers:
                slots(Resources.of(t, gpus), f"teachers.{t.name}.num_cpus")
        return
    cores = os.cpu_count() or 1
    wanted = [("student.num_cpus", config.student.num_cpus * config.student.workers)]
    wanted += [(f"teachers.{t.name}.num_cpus", t.num_cpus) for t in config.teachers]
    for key, cpus in wanted:
        if cpus > cores:
            raise ConfigError(
                key,
                cpus,
                f"this machine has {cores} cores and no cluster is named",
                "Ask for less, or set ray.address",
            )


def needs_hub(config: Config) -> list[tuple[str, str]]:
    """The keys whose values are hub ids: neither local nor built in."""

    def remote(model: ModelConfig, key: str) -> list[tuple[str, str]]:
        names = [(key, model.pretrained), (f"{key}.tokenizer", model.tokenizer)]
        return [(k, v) for k, v in names if v and not os.path.isdir(v)]

    source = config.data.source
    found = [] if source.startswith("builtin:") or os.path.exists(source) else [("data.source", source)]
    for t in config.teachers:
        found += remote(t.model, f"teachers.{t.name}.model")
    return found + remote(config.student.model, "student.model")
