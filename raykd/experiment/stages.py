"""The stages that `teach`, `distill` and `sweep` share: the trainings, and the scores of the teachers."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raykd.cluster.resources import Resources
from raykd.common.errors import OwnCodeError, TrainingError, UserError
from raykd.common.progress import Bars, bars
from raykd.common.units import counted
from raykd.experiment.disagreement import disagreement
from raykd.experiment.precompute import precomputed_rows
from raykd.experiment.scoring import generated_metrics, score_teachers
from raykd.experiment.teacher_doubts import class_misfit, scale_misfit
from raykd.experiment.work import Texts, Work
from raykd.logits import LogitStore
from raykd.plan.job import Job
from raykd.plan.trainings import served_teacher, teacher_jobs
from raykd.tasks.generated import with_generated
from raykd.teachers.dtype import compute_dtype, fixed_dtype
from raykd.teachers.pool import TeacherPool
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.results import Scored
from raykd.training.access import Training
from raykd.training.events import Event, Started

log = logging.getLogger(__name__)
Failures = dict[str, UserError]  # by the job's fingerprint


def train_all(work: Work, trainings: Sequence[Training], shown: Bars, pool: TeacherPool | None = None) -> Failures:
    """Run the trainings that have no result yet, equal ones once. Returns the failures, by fingerprint."""
    config, recorder = work.config, work.recorder
    distinct = {t.job.fingerprint: t for t in trainings}
    todo = [t for t in distinct.values() if not recorder.reuse(t.job)]
    if reused := [t.job.name for t in distinct.values() if t not in todo]:
        work.say(f"reused: {', '.join(reused)}")
    if not todo:
        return {}
    work.start_ray()
    from raykd.training.launch import run_trainings  # imports torch and Ray

    waiting = {t.job.fingerprint for t in todo}

    def on_event(job: Job, event: Event) -> None:
        recorder.on_event(job, event, shown)
        if not isinstance(event, Started) or job.workers == 1:  # several workers get their resources after the start
            waiting.discard(job.fingerprint)
        if pool and not waiting:
            pool.make_way.clear()

    if pool is None:
        return run_trainings(todo, config.ray, on_event)
    pool.make_way.set()  # extra replicas stop, to free resources for waiting trainings
    return run_trainings(
        todo, config.ray, on_event, pool.check, pool.recomputed, lambda: not pool.precompute_done.is_set()
    )


def train_teachers(
    work: Work, baselines: Sequence[Training] = ()
) -> tuple[list[ServedTeacher], Collection[str], Failures]:
    """Train the teachers. Returns them ready to serve, the names of the trained ones, and the failures of `baselines`.

    baselines: trainings that need no teacher, to run at the same time. Raises the error of a teacher that fails.
    """
    config, prepared, recorder = work.config, work.prepared, work.recorder
    by_teacher = teacher_jobs(config, prepared)
    for name, jobs in by_teacher.items():
        recorder.register(jobs, "teacher", name)
    sizes = {t.name: Resources.of(t, work.gpus) for t in config.teachers}
    trainings = [Training(job, sizes[name]) for name, jobs in by_teacher.items() for job in jobs]
    with bars(work.console) as shown:
        failed = train_all(work, [*trainings, *baselines], shown)
    for training in trainings:
        if training.job.fingerprint in failed:
            raise failed[training.job.fingerprint]
    teachers = []
    dtypes: dict[Resources, str] = {}  # finding the dtype of a GPU takes a process
    for teacher in config.teachers:
        models = [job.result()["model"] for job in by_teacher.get(teacher.name, [])]
        size = sizes[teacher.name]
        if size not in dtypes:
            if fixed_dtype(config, teacher, work.gpus) is None:
                work.start_ray()
            dtypes[size] = compute_dtype(config, teacher, work.gpus)
        teachers.append(served_teacher(config, prepared, teacher, models, dtypes[size]))
    keys = {served.name: served.key.fingerprint for served in teachers}
    recorder.scored_by(keys, [config.method.correct_by, config.logits.mode])
    return teachers, by_teacher.keys(), failed


def trainings_failed(failed: Failures, what: str) -> TrainingError:
    """A command's error, which quotes the first failure. what: which trainings, as in "1 training of the seeds"."""
    first = next(iter(failed.values()))
    error = TrainingError(f"{counted(len(failed), 'training')}{what} failed. {first}")
    error.__cause__ = first.__cause__ if isinstance(first, OwnCodeError) else first  # what the user's code has raised
    return error


def score(
    work: Work, teachers: Sequence[ServedTeacher], trained: Collection[str], texts: Mapping[str, Texts], live: bool
) -> list[Scored]:
    """Score the teachers and the ensemble by their stored logits, and measure how many decisions W can change.

    texts: by the teacher's name, what given ones have written.
    """
    config, prepared, recorder = work.config, work.prepared, work.recorder
    rows = precomputed_rows(prepared, live)
    recorder.log_precompute(rows)
    for name in (t.name for t in teachers):
        computed = recorder.event_log.precomputed[name].computed if name in recorder.event_log.precomputed else 0
        found = f"{max(0, rows - computed)} found in the store{' or equal to others' if computed else ''}"
        work.say(f"logits of {name}: {computed} computed, {found}")
    scored = []
    shares: dict[str, float] = {}
    # Live rows change from epoch to epoch, so the training measures this itself.
    if not live and (measured := disagreement(config, prepared, teachers)):
        shares = {"changed_share": measured.changed, "all_wrong_share": measured.all_wrong}
        for served, right in zip(teachers, measured.right, strict=True):
            recorder.note(served.name, "teacher", {"train_right_share": right})
        work.say(
            f"teachers on train: {measured.changed:.2%} of the labelled decisions have some teachers right, some wrong "
            f"(where W acts), {measured.all_wrong:.2%} all teachers wrong"
        )
    *each, ensemble = score_teachers(prepared, teachers, LogitStore.of(config))
    for served, evaluations in zip(teachers, each, strict=True):
        method = "finetune" if served.name in trained else "given"
        if config.task.generate and served.name in trained:
            evaluations["test"].metrics.update(generated_metrics(served))
        elif served.name in texts:
            raw = prepared.splits["test"].rows
            evaluations["test"] = with_generated(evaluations["test"], texts[served.name], raw)
        details: dict[str, Any] = {}
        names = prepared.task.label_names if method == "given" and not prepared.task.problem_type else ()
        if names and (misfit := class_misfit(names, evaluations["validation"].predictions)):
            log.warning("%s", misfit.warning(served.name))
            details["class_order"] = misfit.as_json()
        judged = evaluations["validation"].predictions if prepared.task.predicts_values and method == "given" else []
        if judged and (warning := scale_misfit(judged)):
            log.warning("teacher %s: %s", served.name, warning)
        scored.append(recorder.scored(served.name, "teacher", method, evaluations, details))
    recorder.note("ensemble", "ensemble", shares)
    scored.append(recorder.scored("ensemble", "ensemble", "mean", ensemble, details=shares))
    return scored
