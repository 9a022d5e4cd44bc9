"""The driver of `raykd sweep`: teachers and their logits, trials of all methods, the best settings on fresh seeds.

Read it from top to bottom.
"""

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console

from raykd.cluster.flags import Flag
from raykd.cluster.local import remember_finished
from raykd.cluster.placement import check_room
from raykd.cluster.running import cluster_gpus
from raykd.common.errors import ConfigError, TrainingError
from raykd.common.output_files import REPORT
from raykd.common.progress import Count, bars
from raykd.config.schema import Config
from raykd.disk.leftovers import remove_leftovers
from raykd.experiment.command import cluster
from raykd.experiment.divergence import divergences
from raykd.experiment.ending import analysis_of, finish, upload
from raykd.experiment.exclusive import only_command
from raykd.experiment.head_repair import restore_heads
from raykd.experiment.precompute import log_precompute, start_precompute
from raykd.experiment.serving_cost import note_costs, serving_costs
from raykd.experiment.stages import Failures, score, train_all, train_teachers, trainings_failed
from raykd.experiment.teacher_texts import given_texts
from raykd.experiment.work import Work
from raykd.models.hub import check_push
from raykd.models.identity import folder_digest
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.reports.command import say_where, write_report
from raykd.search.concurrency import at_once
from raykd.search.gpu_sharing import GpuSharing, Measure
from raykd.search.ignored import ignored_values
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.run import run_trials
from raykd.search.space import SearchArm, Space
from raykd.search.state import import_optuna
from raykd.search.trial_spec import signed
from raykd.tracking.also import check_also, openers
from raykd.tracking.continued import scored_tag
from raykd.tracking.experiment import Tracking
from raykd.tracking.mlflow_store import one_line, tracking_uri
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored
from raykd.training.access import Training

log = logging.getLogger(__name__)


def run(config: Config, console: Console, resume: bool = False, measure: Measure | None = None) -> list[Scored]:
    """Run `raykd sweep`. Raises UserError; KeyboardInterrupt or SystemExit if it was stopped.

    measure: see `GpuSharing`.
    """
    uri = tracking_uri(config.tracking.uri, Path(config.output))
    check_also(config)
    check_push(config)
    check_room(config)
    space = Space(config)  # an invalid space is an error before anything is loaded
    for line in ignored_values(space):
        log.warning(line)
    if config.search.algorithm == "tpe":
        import_optuna()
    with only_command(config, "sweep"):
        return _run(config, console, space, uri, resume, measure)


def _run(
    config: Config, console: Console, space: Space, uri: str, resume: bool, measure: Measure | None
) -> list[Scored]:
    sweep = TrialJobs(space, prepare(config))
    journal = Journal(config.folder, config.model_dump(mode="json"), resume, sweep.parts())
    with cluster(config, sweep.prepared, console, "sweep") as start_ray:
        tracking = Tracking(uri, config.experiment, openers(config))
        keys = [p.key.removeprefix("student.") for p in space.parameters if p.key.startswith("student.model")]
        with Recorder(tracking, config, sweep.prepared, "sweep", keys, journal.runs) as recorder:
            journal.note_runs({"": recorder.parent.id})
            recorder.children.on_new = lambda key, run_id: journal.note_runs({key: run_id})
            recorder.parent.set_tags(sweep.tags())
            work = Work(config, sweep.prepared, console, recorder, cluster_gpus(), start_ray)
            scored, failed = run_stages(work, sweep, journal, measure)
            analysis = analysis_of(recorder)
            finish(work, scored, uri, analysis)
            if analysis:
                write_report([analysis], config.folder / REPORT)
                say_where(config.folder / REPORT, console)
            if failed:  # the report has those that did not fail
                recorder.parent.set_tags(scored_tag(config))
                raise trainings_failed(failed, " of the seeds")
    upload(work, scored)
    remember_finished(config, "sweep")
    remove_leftovers(Path(config.output), config.name, console)
    return scored


def run_stages(
    work: Work, sweep: TrialJobs, journal: Journal, measure: Measure | None = None
) -> tuple[list[Scored], Failures]:
    """Returns the scores, and the trainings on fresh seeds that failed, by fingerprint."""
    config, recorder = work.config, work.recorder
    sharing = GpuSharing(config, work.gpus, measure)

    # 1. Teachers, and 2. their logits, which are computed during the trials if there is room for both.
    sweep.teachers, trained, _ = train_teachers(work)
    restore_heads(work, sweep.teachers)
    texts = given_texts(work, sweep.teachers, trained)
    _forget_outdated(work, sweep, journal)
    live = config.is_live("sweep")
    with bars(work.console) as display:
        pool, access, overlap = start_precompute(work, sweep.teachers, _first_job(sweep), sharing.size, live, display)
    with closing(pool):
        scored = [] if overlap else score(work, sweep.teachers, trained, texts, live)

        # 3. Trials of every arm, on one seed.
        state = run_trials(
            work, sweep, journal, pool, access, sharing, lambda: at_once(config, sharing.size, live or overlap)
        )

        # 4. The best setting of each arm, chosen on validation, trained again on fresh seeds.
        finals: dict[str, list[Job]] = {}
        for arm in sweep.space.arms:
            if (best := state.best(arm)) is None:
                work.say(f"{arm.name}: none of its trials has finished, so it is not in the table")
                continue
            finals[arm.name] = []
            for seed in sweep.fresh_seeds():
                job = sweep.job(arm, best.setting, seed, f"{arm.name} seed {seed}", keep_model=True)
                recorder.register([job], _role(arm), job.name, arm.name, sweep.arm_tags(arm))
                finals[arm.name].append(job)
        if not finals:
            reasons = [t.reason for t in state.trials if t.reason]
            raise TrainingError(f"no trial has finished. {reasons[-1] if reasons else state.over}")
        current = {job.name for jobs in finals.values() for job in jobs} | {trial.name for trial in state.trials}
        current |= {"", "ensemble", *(teacher.name for teacher in config.teachers)}
        for name in (recorder.children.known.keys() | recorder.children.links.keys()) - current:
            recorder.children.supersede(name)  # its seed is no longer used, or its arm has no best setting now
        final_jobs = [job for jobs in finals.values() for job in jobs]
        missing = len({job.fingerprint for job in final_jobs if not job.done})
        if missing and sharing.open:  # no trial has needed a process, as after a sweep that was killed here
            if sharing.waits_for_logits(sweep):
                pool.wait()
            pool.make_way.set()
            work.start_ray()
            sharing.decide(sweep, missing, Flag(config.store, "stop"), pool.check, work.say)
        with bars(work.console) as display:
            trainings = [Training(job, sharing.size, access) for job in final_jobs]
            failed = train_all(work, trainings, Count(display, "best settings, fresh seeds", missing), pool)
        pool.wait()
    log_precompute(work, pool, live)
    if overlap:
        scored = score(work, sweep.teachers, trained, texts, live)
    finished = [job for jobs in finals.values() for job in jobs if job.fingerprint not in failed]
    costs = serving_costs(work, sweep.teachers, finished)
    measured = divergences(work, sweep.teachers, finished)
    for name, jobs in finals.items():
        role = _role(state.arms[name])
        for job in jobs:
            if job in finished:
                student = recorder.trained(
                    job, role, sharing.size.gpus, log_model=False, measured=measured.get(job.name)
                )
                scored += [*recorder.generations(job), student]
    note_costs(scored, costs)
    return _ranked(work, sweep, scored, finals), failed


def _forget_outdated(work: Work, sweep: TrialJobs, journal: Journal) -> None:
    """Set the trials of an earlier command back to waiting if they would now be different trainings.

    The journal has checked that data and models are the same. But a teacher that was trained again, or that computes
    in another dtype, has different logits.
    """
    if journal.retried:
        listed = "; ".join(f"{name} ({reason})" for name, reason in journal.retried.items())
        work.say(f"trying failed trials again: {listed}")
    served = {teacher.name: teacher.key.parts for teacher in sweep.teachers}
    changed = journal.changed_teachers(served)
    arms = {arm.name: arm for arm in sweep.space.arms}
    outdated = []
    for trial in journal.trials.values():
        if trial.ended and trial.fingerprint:
            try:
                job = sweep.job(arms[trial.arm], trial.setting, trial.seed, trial.name, keep_model=False)
            except ConfigError:  # an older raykd let its values through, and it failed
                continue
            if job.fingerprint != trial.fingerprint:
                outdated.append(trial)
    for name in (*changed, *(["ensemble"] if changed else [])):
        work.recorder.renew(name)
    for trial in outdated:
        trial.state, trial.score, trial.reason, trial.fingerprint = "waiting", None, "", ""
        journal.note(trial, journal.elapsed)
    journal.note_served(served)
    if outdated:
        parts_changed = "; ".join(f"teachers.{name}: {', '.join(parts)}" for name, parts in changed.items())
        names = ", ".join(trial.name for trial in outdated)
        work.say(f"run again because something they depend on has changed ({parts_changed or 'raykd itself'}): {names}")


def _role(arm: SearchArm) -> str:
    return "baseline" if arm.name == "finetune" else "student"


def _first_job(sweep: TrialJobs) -> Job:
    """A training whose first epoch defines the order in which rows are needed: of any arm that distils."""
    arms = sweep.space.arms
    arm = next((a for a in arms if a.name not in ("finetune", "label_smoothing")), arms[0])
    setting = next(sweep.space.settings(arm))
    return sweep.job(arm, setting, sweep.config.student.seeds[0], "first", keep_model=False)


def _ranked(work: Work, sweep: TrialJobs, scored: list[Scored], finals: dict[str, list[Job]]) -> list[Scored]:
    """Teachers and ensemble, then the arms by mean validation score, the best last.

    Registers the best method's model in MLflow.
    """
    recorder = work.recorder
    arms: dict[str, list[Scored]] = {}
    for run in scored:
        if run.role in ("baseline", "student"):
            arms.setdefault(run.details["group"], []).append(run)

    def validation(runs: list[Scored]) -> float:
        mean = float(np.mean([signed(r.metrics["validation"], sweep.metric) for r in runs]))
        return mean if np.isfinite(mean) else -np.inf

    # Among equal arms the report takes the first by name as the best, so that one comes last here.
    order = [arms[name] for name in sorted(arms, key=lambda name: (-validation(arms[name]), name))][::-1]
    students = [runs for runs in order if sweep.without_controls(runs) and runs[0].role == "student"]
    if students:
        best = max(students[-1], key=lambda r: validation([r]))
        job = next(j for jobs in finals.values() for j in jobs if j.name == best.name)
        model_id = best.details["mlflow_model_id"] = _registered(work, best.name, Path(job.result()["model"]))
        if recorder.is_at_chance("validation", best.metrics):
            what = "which the alias best names" if model_id else "the best student"
            work.say(f"{best.name}, {what}, has learnt nothing: on validation it is at chance, or worse")
    return [r for r in scored if r.role not in ("baseline", "student")] + [r for runs in order for r in runs]


def _registered(work: Work, best: str, folder: Path) -> str | None:
    """The id of the best student's model in MLflow, where it is registered; None, with a warning, if MLflow refuses."""
    name, tracking = work.config.name, work.recorder.tracking
    digest = folder_digest(folder)
    try:
        if known := tracking.registered(name, "best", digest):
            version, model_id = known
            work.say(f"already registered: {best} as {name} version {version}, alias best")
        else:
            model_id = work.recorder.children.runs[best].model(folder, best)
            version = tracking.register(model_id, name, "best", digest)
            work.say(f"registered: {best} as {name} version {version}, alias best")
    except Exception as error:  # MLflow has no error common to its stores; what was trained and scored is there
        text = "%s is not registered in MLflow as %s, alias best (%s). `raykd sweep ... --resume` tries again"
        log.warning(text, best, name, one_line(error))
        return None
    return model_id
