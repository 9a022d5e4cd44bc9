"""What teachers, ensemble and student cost to serve: measured once, and remembered in the store."""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raykd.cluster.resources import Resources
from raykd.cluster.running import accelerators
from raykd.common.atomic import write_atomically
from raykd.common.gpu_driver import gpu_models
from raykd.common.remembered import remembered
from raykd.common.versions import processor_name
from raykd.config.data import TaskConfig
from raykd.data.encoding import Encoded
from raykd.experiment.on_worker import on_worker
from raykd.experiment.work import Work
from raykd.models.serving_cost import Cost, Servable, measure, one_after_another, with_card_line
from raykd.plan.job import CARD, Job
from raykd.reports.read import SERVING
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.mlflow_store import one_line
from raykd.tracking.results import Scored

log = logging.getLogger(__name__)
_VERSION = 1  # increase it when `measure` measures something else


def serving_costs(work: Work, teachers: Sequence[ServedTeacher], jobs: Sequence[Job] = ()) -> dict[str, Cost]:
    """By the name of their run, the costs of the teachers, of the ensemble and of finished trainings of the student.

    jobs: the trainings whose models are kept. Trainings that start from equal models share one measurement.

    They are also written to the students' model cards and to MLflow. All are measured with the student's resources,
    so that they can be compared. One that fails is left out, with a warning.
    """
    if not work.config.tracking.serving_cost:
        return {}
    costs: dict[str, Cost] = {}
    for served in teachers:
        member = work.prepared.teachers[served.name]
        key = f"teachers.{served.name}.model"
        task, test = member.model.task.settings, member.splits["test"]
        if cost := _cost(work, key, served.models, task, test, served.key.fingerprint):
            costs[served.name] = cost
    if all(served.name in costs for served in teachers):
        costs["ensemble"] = one_after_another([costs[served.name] for served in teachers])
    of_models: dict[str, Cost | None] = {}
    for job in jobs:
        folder = Path(job.result()["model"])
        content = job.model_digest
        if job.lora and job.lora.save == "adapter":  # it is smaller than a model, and its matrices add to each pass
            content += f" {job.lora.r} {job.lora.target_modules}"
        if content not in of_models:
            spec = job.model.trained(str(folder))
            of_models[content] = _cost(work, "student.model", [spec], job.task, job.test.encoded, content)
        if cost := of_models[content]:
            costs[job.name] = cost
            _write_card(folder / CARD, cost)
    try:
        work.recorder.parent.artifact_json({"models": costs}, SERVING)
    except Exception as error:  # MLflow is unavailable: `results.json` has the same
        log.warning("what the models cost to serve is not in MLflow (%s)", one_line(error))
    return costs


def _cost(work: Work, key: str, models: Sequence[Any], task: TaskConfig, test: Encoded, content: str) -> Cost | None:
    """The cost of a teacher or a student; None, with a warning, if it cannot be measured.

    test: the test rows as encoded for its models.
    content: a hash of its models.
    """
    config, needs = work.config, Resources.of(work.config.student, work.gpus)
    on_cluster = bool(config.ray.cluster or needs.num_gpus)  # otherwise this machine is the one that trains
    dtype, batch_rows = config.logits.dtype, config.training.batch_size
    threads = max(1, int(needs.num_cpus))
    servable = Servable(
        key=key,
        task=task,
        label_names=work.prepared.task.label_names,
        models=tuple(models),
        rows=test.folder,
        dtype=dtype,
        batch_rows=batch_rows,
        threads=threads,
        num_gpus=needs.num_gpus,
    )

    def compute() -> Cost:
        return on_worker(work, needs, measure, servable, config.ray.timeout_s)

    try:
        gpus = [] if not needs.num_gpus else accelerators() if config.ray.cluster else gpu_models()
        device = [str(needs), *gpus] if on_cluster else [processor_name()]
        machine = [*device, threads, version("torch"), version("transformers")]
        return remembered(
            config.store, "serving", [_VERSION, content, test.digest, dtype, batch_rows, *machine], compute
        )
    except Exception as error:  # as with any model's code; nothing else depends on it
        log.warning("%s: what it costs to serve was not measured (%s)", key, one_line(error))
        return None


def _write_card(path: Path, cost: Cost) -> None:
    """Add the latency to a student's model card, unless it is there."""
    card = path.read_text()
    if (changed := with_card_line(card, cost)) != card:
        write_atomically(path, changed.encode())


def note_costs(scored: Sequence[Scored], costs: Mapping[str, Cost]) -> None:
    """Add the costs to the results, as `results.json` has them."""
    for run in scored:
        if run.name in costs:
            run.details["serving"] = costs[run.name]
