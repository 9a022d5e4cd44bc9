"""Around the single cases: what must not be refused, the process as a user starts it, and refusals once work began."""

import os
import subprocess
import sys

import pytest
import torch
from bad_case import GIVEN, QUESTIONS, REVIEWS, Case
from processes import LIMIT

from raykd.cli import main
from raykd.config.load import load
from raykd.plan.prepare import prepare
from raykd.plan.trainings import teacher_jobs
from raykd.tasks import Batch
from raykd.tasks.text_classification import TextClassification
from raykd.training.loop import train


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        (REVIEWS, []),
        (QUESTIONS, []),
        (REVIEWS, [GIVEN, "teachers.a.model=good"]),
        (REVIEWS, [GIVEN, "teachers.a.model=upper"]),  # the case of names does not count
        (REVIEWS, [GIVEN, "teachers.a.model=unnamed"]),  # nothing to compare
        (REVIEWS, [GIVEN, "teachers.a.model=numbered"]),
        (REVIEWS, [GIVEN, "teachers.a.model=reversed"]),  # its classes go by name
        (REVIEWS, [GIVEN, "teachers.a.model=renumbered_labels", "task.labels=null"]),  # LABEL_1 is the data's 1
        (REVIEWS, [GIVEN, "teachers.a.model=other", "teachers.a.labels=[good, bad]"]),
        (REVIEWS, ["task.labels=null", "teachers.*.recipe=null", "teachers.a.model=good", "teachers.b.model=upper"]),
        (REVIEWS, ["teachers.a.model=reversed"]),  # it has a recipe, which gives its head new names
        (QUESTIONS, ["teachers.b.model.tokenizer=renumbered"]),  # other numbers for the same pieces of text
        (REVIEWS, ["task.max_length=64"]),
        (QUESTIONS, ["training.select=HasAns_f1", "search.metric=NoAns_f1"]),
        (REVIEWS, ["data.transfer=hidden.parquet"]),  # transfer rows have no labels anyway
    ],
)
def test_good_input_is_not_refused(jobs, capsys, monkeypatch, job, overrides):
    """Counterparts of the refused cases: the checks refuse no more than they should."""
    monkeypatch.chdir(jobs)
    assert main(["check", job, *overrides]) == 0
    assert "everything is valid" in capsys.readouterr().out


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "value of the config",
            overrides=["method=weighted", "method.W=1.5"],
            key="method.W",
            value="1.5",
            names=["0 to 1"],
        ),
        Case(
            "column of the data",
            overrides=["data.columns.text=sentence"],
            key="data.columns.text",
            value="sentence",
            names=["train", "text, label", "data.columns.text"],
        ),
    ],
    ids=lambda case: case.name,
)
def test_one_line_of_the_program_itself(jobs, case):
    """As a user starts it: the libraries' own messages are not on stderr either."""
    command = [sys.executable, "-m", "raykd", "distill", case.job, *case.overrides]
    done = subprocess.run(command, cwd=jobs, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) <= 1, "what the command is about to do, once its YAML is valid"
    assert done.stderr.count("\n") == 1
    case.check(done.stderr.removeprefix("raykd: "))


def test_debug_adds_the_traceback(jobs, capsys, caplog):
    assert main(["check", str(jobs / REVIEWS), "data.train=nothing", "--debug"]) == 2
    assert capsys.readouterr().err.startswith("raykd: data.train = nothing: ")
    assert "Traceback" in caplog.text


def test_gold_label_on_a_class_that_is_not_allowed_stops_the_training(jobs, monkeypatch):
    """Data cannot say so in raykd's own tasks; in a task of one's own the arithmetic refuses it, in one line."""
    collate = TextClassification.collate

    def forbidding(self: TextClassification, rows: dict, processor: object) -> Batch:
        batch = collate(self, rows, processor)
        mask = torch.ones(*batch.labels.shape, 2, dtype=torch.bool)
        mask[..., 1] = False
        return Batch(batch.inputs, batch.labels, mask)

    config = load(jobs / REVIEWS, [f"output={jobs / 'other_runs'}"])
    job = teacher_jobs(config, prepare(config))["a"][0]
    monkeypatch.setattr(TextClassification, "collate", forbidding)
    with pytest.raises(ValueError, match=r"^labels\[\d, 0\] = 1: not a class that this decision allows[^\n]*$"):
        list(train(job))


def test_address_where_no_cluster_is(jobs):
    """Ray itself would try for minutes, or end in a traceback. In a process without the tests' own Ray."""
    addresses = ["127.0.0.1:1", "127.0.0.1", "here:there"]
    code = "import sys; from raykd.cli import main\n"
    code += "for a in sys.argv[2:]: assert main(['check', sys.argv[1], f'ray.address={a}']) == 2"
    environment = os.environ | {"RAY_ADDRESS": "10.0.0.1:1"}  # the YAML's goes before it
    command = [sys.executable, "-c", code, REVIEWS, *addresses]
    run = subprocess.run(command, cwd=jobs, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True)
    for line, address in zip(run.stderr.splitlines(), addresses, strict=True):
        Case("", key="ray.address", value=address, names=["address"]).check(line.removeprefix("raykd: "))
