"""Counts what a command still has to do: trainings, passes of teachers over rows, bytes of logits."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import datasets
import numpy as np

from raykd.checks.kept import numbers
from raykd.cluster.placement import fits
from raykd.cluster.resources import Resources
from raykd.common.row_files import open_rows
from raykd.config.schema import Config, TeacherConfig
from raykd.experiment.precompute import work_for_teachers
from raykd.logits import LogitStore
from raykd.logits.block import block_bytes
from raykd.plan.job import Job, best_scores
from raykd.plan.prepare import Prepared
from raykd.plan.trainings import FINETUNE, served_teacher, student_jobs, teacher_jobs
from raykd.search.jobs import TrialJobs
from raykd.search.space import Setting, Space
from raykd.search.trial_spec import signed
from raykd.teachers.dtype import compute_dtype
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replicas import ReplicaGroup
from raykd.teachers.serving import ServedTeacher
from raykd.training.access import Training


@dataclass(frozen=True)
class Stage:
    """Trainings that run at the same time if there is room.

    done: number of other trainings of the stage that have a result already.
    at_once: how many run at the same time.
    """

    name: str
    trainings: list[Training]
    done: int = 0
    at_once: int = 1


@dataclass(frozen=True)
class Precompute:
    """The logits of one teacher that have to be computed.

    rows: number of rows to compute.
    stored: number of rows in the store already.
    passes: of a model over a row. On a row outside its training rows, every fold model of a teacher is run.
    bytes: size of the new blocks.
    size: resources of each replica.
    """

    teacher: str
    rows: int
    stored: int
    passes: int
    bytes: int
    replicas: int
    size: Resources


@dataclass(frozen=True)
class Workload:
    """What a command still has to do.

    command: distill or sweep.
    rounds: teachers in the order in which they run; those of one list run at the same time.
    takes_over: whether a teacher of a later round does not wait for all of the first, but takes the place of one.
    round_starts: how many of the rounds start processes; in the others, teachers take over those of earlier ones.
    overlap: whether the first students train at the same time as the teachers compute.
    """

    command: str
    teachers: Stage
    rounds: list[list[Precompute]]
    takes_over: bool
    round_starts: int
    students: list[Stage]
    overlap: bool
    served: list[ServedTeacher] = field(repr=False)

    @property
    def precomputes(self) -> list[Precompute]:
        return [p for round_ in self.rounds for p in round_]

    @property
    def is_empty(self) -> bool:
        stages = [self.teachers, *self.students]
        return not any(stage.trainings for stage in stages) and not any(p.rows for p in self.precomputes)


def workload_of(config: Config, prepared: Prepared, gpus: float) -> Workload:
    """The workload of `raykd sweep` if the config has a search section, otherwise of `raykd distill`.

    Ray must be connected.
    """
    by_teacher = teacher_jobs(config, prepared)
    sizes = {t.name: Resources.of(t, gpus) for t in config.teachers}
    of_student = Resources.of(config.student, gpus)
    served = [_served(config, prepared, t, by_teacher.get(t.name, []), gpus) for t in config.teachers]
    first = [Training(job, sizes[name]) for name, jobs in by_teacher.items() for job in jobs]
    seen: set[str] = set()

    def stage(name: str, trainings: Sequence[Training], most: int = 10**6) -> Stage:
        """Equal trainings are run once, also across stages."""
        distinct = {t.job.fingerprint: t for t in trainings if t.job.fingerprint not in seen}
        seen.update(distinct)
        todo = [t for t in distinct.values() if not t.job.done]
        return Stage(name, todo, len(distinct) - len(todo), room([t.resources for t in todo], most))

    if "search" in config.model_fields_set:
        command = "sweep"
        sweep = TrialJobs(Space(config), prepared)
        sweep.teachers = served
        trials = _trials(sweep)
        teachers = stage("teachers", first)
        longest = max(map(len, trials.values()))
        drawn = [arm[number][1] for number in range(longest) for arm in trials.values() if number < len(arm)]
        most = config.search.concurrency or 10**6
        students = [stage("trials", [Training(job, of_student) for job in drawn], most)]
        students.append(
            stage("best settings, fresh seeds", [Training(job, of_student) for job in _finals(sweep, trials)])
        )
        first_student = next((job for job in drawn if job.method.distils), None)
    else:
        command = "distill"
        baselines = student_jobs(config, prepared, FINETUNE, (), "baseline") if config.baseline else []
        teachers = stage("teachers, baseline", [*first, *(Training(job, of_student) for job in baselines)])
        jobs = student_jobs(config, prepared, config.method, served)
        students, first_student = [stage("student", [Training(job, of_student) for job in jobs])], jobs[0]
    live = config.is_live(command)
    teacher_works = work_for_teachers(config, prepared, served, first_student, live)
    pool = TeacherPool(teacher_works, LogitStore.of(config), config, gpus, lambda progress: None)
    rounds = [[_precompute(group, prepared) for group in round_] for round_ in pool.rounds]
    computing = {group.name for round_ in pool.rounds for group in round_}
    rounds += [
        [_precompute(group, prepared)] for group in pool.replica_groups if group.name not in computing
    ]  # all of its rows are stored
    takes_over = len(pool.rounds) > 1 and pool.takes_over
    starts = 1 if takes_over else len(pool.rounds)
    overlap = not live and not pool.idle and pool.overlap(of_student)
    return Workload(command, teachers, rounds, takes_over, starts, students, overlap, served)


def room(sizes: Sequence[Resources], most: int) -> int:
    """How many of the first `sizes` fit the cluster at the same time: 1 to `most`."""
    count = 1
    while count < min(len(sizes), most) and fits(sizes[: count + 1]):
        count += 1
    return count


def _served(config: Config, prepared: Prepared, teacher: TeacherConfig, jobs: list[Job], gpus: float) -> ServedTeacher:
    """The teacher as it will serve. If it is not trained yet, it gets a key under which nothing is stored."""
    dtype = compute_dtype(config, teacher, gpus)
    if all(job.done for job in jobs):
        models = [job.result()["model"] for job in jobs]
        return served_teacher(config, prepared, teacher, models, dtype)
    plain = served_teacher(config, prepared, teacher, [], dtype)
    weights = tuple(job.fingerprint for job in jobs)
    return dataclasses.replace(plain, models=plain.models * len(jobs), digests=weights)


def _trials(sweep: TrialJobs) -> dict[str, list[tuple[Setting, Job]]]:
    """Trials by arm, in the order in which they are drawn. For TPE, whose settings depend on scores, random ones."""
    trials: dict[str, list[tuple[Setting, Job]]] = {}
    seed = sweep.config.student.seeds[0]
    for arm in sweep.space.arms:
        settings = islice(sweep.space.settings(arm), sweep.space.trials(arm))
        trials[arm.name] = [
            (setting, sweep.job(arm, setting, seed, f"{arm.name} {number}", keep_model=False))
            for number, setting in enumerate(settings, 1)
        ]
    return trials


def _finals(sweep: TrialJobs, trials: dict[str, list[tuple[Setting, Job]]]) -> list[Job]:
    """Each arm's best setting on fresh seeds. If it is not known yet, the arm's settings in rotation."""
    jobs = []
    for arm in sweep.space.arms:
        settings = [setting for setting, _ in trials[arm.name]]
        if all(job.done for _, job in trials[arm.name]):
            settings = [max(trials[arm.name], key=lambda trial: _score(trial[1], sweep.metric))[0]]
        for seed, setting in zip(sweep.fresh_seeds(), cycle(settings), strict=False):
            jobs.append(sweep.job(arm, setting, seed, f"{arm.name} seed {seed}", keep_model=True))
    return jobs


def _score(job: Job, metric: str) -> float:
    return signed(best_scores(job.result())["validation"], metric)


def _precompute(group: ReplicaGroup, prepared: Prepared) -> Precompute:
    models, task = len(group.teacher_work.served.models), prepared.task
    rows = passes = size = 0
    values: dict[tuple, np.ndarray] = {}  # fp16 numbers of each row
    for request in (block.request for block in group.blocks):
        if request.folders not in values:
            opened = datasets.concatenate_datasets([open_rows(f) for f in request.folders])
            shapes = task.shapes(opened.select_columns([*task.shape_columns])[:])
            values[request.folders] = shapes[:, 0].astype(np.int64) * numbers(
                prepared, group.name, group.teacher_work.served.keep, shapes[:, 1]
            )
        rows += len(request.positions)
        passes += int(np.where(request.folds < 0, models, 1).sum())
        size += block_bytes(len(request.positions), int(values[request.folders][request.positions].sum()))
    replicas = max(1, min(len(group.wanted), len(group.blocks)))
    return Precompute(group.name, rows, group.counts.stored, passes, size, replicas, group.size)
