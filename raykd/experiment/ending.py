"""How `teach`, `distill` and `sweep` end: the table, `results.json`, the report's answer, and what people do next."""

import logging
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from raykd.common.metrics import higher_is_better
from raykd.common.redaction import redact
from raykd.experiment.examples import note_examples
from raykd.experiment.work import Work
from raykd.models.adapters import is_adapter, settings_of
from raykd.models.hub import push
from raykd.reports.analysis import Analysis, analyze
from raykd.reports.caveats import trials_at_chance
from raykd.reports.conclusion import conclusion
from raykd.reports.note import note, winner_metrics
from raykd.reports.read import read
from raykd.tracking.also import where
from raykd.tracking.mlflow_store import one_line, runs_page
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import SAME_MODEL, Scored, grouped, latencies, table, write_results

log = logging.getLogger(__name__)


def analysis_of(recorder: Recorder) -> Analysis | None:
    """The report's analysis of this command's own run; None, with a warning, if MLflow does not give it."""
    tracking, run_id = recorder.tracking, recorder.parent.id
    try:
        tracking.drop_twins(recorder.parent, recorder.children.ids)
        if not recorder.flush():
            raise ConnectionError("it does not take metrics now")
        experiment = read(tracking.client, tracking.uri, tracking.client.get_run(run_id))
    except Exception as error:  # MLflow has no error common to its stores; what was trained and scored is there
        later = shown_path(recorder.config.folder)  # `finish` writes there which run it is, in which store
        log.warning("no conclusion: MLflow cannot be read (%s). Later: raykd report %s", one_line(error), later)
        return None
    analysis = analyze(experiment)
    try:
        note_examples(recorder, analysis)
    except Exception as error:  # as above; the report shows their numbers
        log.warning("the examples of the report are not in MLflow (%s)", one_line(error))
    return analysis


def finish(work: Work, scored: Sequence[Scored], uri: str, analysis: Analysis | None) -> None:
    """The table, `results.json`, MLflow's description of the command, and where to look.

    analysis: the report's; None: there is no answer.
    """
    sentence = conclusion(analysis) if analysis else ""
    config, task, recorder = work.config, work.prepared.task, work.recorder
    mlflow = {"uri": uri, "experiment_id": recorder.parent.experiment_id, "run_id": recorder.parent.id}
    about = {
        "name": config.name,
        "task": config.task.type,
        "headline": task.primary_metric,
        "verdict": sentence,
        "mlflow": mlflow,
    }
    student = _best_student(scored, task.primary_metric)
    if student:
        about["student"] = {"name": student.name, "model": student.details["model"]}
    results = write_results(config.folder, scored, about)
    try:
        recorder.parent.artifact(results)
    except Exception as error:  # MLflow is unavailable: the file is there
        log.warning("%s is not in MLflow (%s)", results, one_line(error))
    if analysis:
        recorder.describe(note(analysis), winner_metrics(analysis))
    work.console.print()
    work.console.print(table(scored, task.primary_metric, task.percent, work.console.width))
    if sentence:
        work.console.print(sentence, highlight=False, soft_wrap=not work.console.is_terminal)
    for line in trials_at_chance(analysis) if analysis else []:
        work.say(line)
    for run in scored:
        if "same_training" in run.details:
            work.say(f"{run.name} {SAME_MODEL.format(run.details['same_training'])}")
    if line := latencies(scored):
        work.say(line)
    work.say(f"files:  {config.folder} (results.json, config.yaml), models and logits in {config.store}")
    if student:
        _say_student(work, student)
    work.say(f"MLflow: {redact(uri)}, experiment {config.experiment}")
    page = runs_page(recorder.parent.experiment_id)
    if uri.startswith("sqlite:"):
        command = Path(sys.executable).with_name("mlflow")
        work.say(f"to see it: {shlex.quote(str(command))} ui --backend-store-uri {shlex.quote(uri)} --port 5000")
        work.say(f"and open:  http://127.0.0.1:5000/{page}")
    elif uri.startswith("http"):
        work.say(f"to see it: {str(redact(uri)).rstrip('/')}/{page}")
    for line in where(config):
        work.say(line)


def upload(work: Work, scored: Sequence[Scored]) -> None:
    """Push the best student to the hub, if the config names a repository. Raises TrainingError."""
    repository = work.config.student.push_to_hub
    student = _best_student(scored, work.prepared.task.primary_metric)
    if repository and student:
        work.say(f"uploaded: {push(Path(student.details['model']), repository)}")


def _say_student(work: Work, student: Scored) -> None:
    """The lines that load it in Python."""
    task = work.prepared.task
    auto = "AutoTokenizer" if task.processor == "tokenizer" else "AutoImageProcessor"
    folder, load = student.details["model"], f"transformers.{task.auto_model}.from_pretrained"
    if is_adapter(Path(folder)):
        start = settings_of(Path(folder), "student.model")["base_model_name_or_path"]  # a sweep can try several
        work.say(f"student: {student.name}, an adapter. In Python, after `import peft, transformers`:")
        work.say(f'    config = transformers.AutoConfig.from_pretrained("{folder}")')
        work.say(f'    base = {load}("{start}", config=config)')
        work.say(f'    model = peft.PeftModel.from_pretrained(base, "{folder}")')
    else:
        work.say(f"student: {student.name}. In Python, after `import transformers`:")
        work.say(f'    model = {load}("{folder}")')
    work.say(f'    processor = transformers.{auto}.from_pretrained("{folder}")')
    work.say(f"predict: raykd predict {shown_path(work.config.folder)} ROWS (a file, a folder or a hub id)")


def shown_path(folder: Path) -> str:
    """As it can be typed here: relative to the current folder if it is in it."""
    return shlex.quote(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


def _best_student(scored: Sequence[Scored], metric: str) -> Scored | None:
    """Of the method that is listed last, the student with the best validation; of a sweep, the registered one."""
    students = [run for run in scored if run.role == "student" and "model" in run.details]
    students = [run for run in students if "mlflow_model_id" in run.details] or students
    if not students:
        return None
    _, last = grouped(students)[-1]

    def rank(run: Scored) -> tuple[bool, float]:
        value = run.metrics["validation"][metric]
        return math.isfinite(value), higher_is_better(metric, value)

    return max(last, key=rank)
