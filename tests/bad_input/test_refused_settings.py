"""Settings that are well-formed but do not fit this cluster, this task, these rows or this disk."""

import pytest
from bad_case import QUESTIONS, Case

CASES = [
    Case(
        "relative sqlite path",
        overrides=["tracking.uri=sqlite:///mlflow.db"],
        key="tracking.uri",
        value="sqlite:///mlflow.db",
        names=["absolute path", "sqlite:///"],
    ),
    Case(
        "more CPUs than there are",
        overrides=["student.num_cpus=1000"],
        key="student.num_cpus",
        value="1000",
        names=["num_cpus"],
    ),
    Case(
        "more CPUs for a teacher",
        overrides=["teachers.b.num_cpus=1000"],
        key="teachers.b.num_cpus",
        value="1000",
        names=["num_cpus"],
    ),
    Case(
        "more workers than CPUs",
        overrides=["student.workers=4000", "training.batch_size=4000"],
        key="student.num_cpus",
        value="4000 workers of 1 CPU",
        names=["num_cpus"],
    ),
    Case(
        "batch smaller than its parts",
        overrides=["training.batch_size=3", "student.workers=1", "student.training.accumulation=4"],
        key="student.training.batch_size",
        value="3",
        names=["1 workers", "4 accumulations", "4"],
    ),
    Case(
        "choice by no metric",
        overrides=["training.select=f1"],
        key="training.select",
        value="f1",
        names=["accuracy, macro_f1"],
    ),
    Case(
        "choice by another task's metric",
        job=QUESTIONS,
        overrides=["teachers.a.recipe.training.select=accuracy"],
        key="teachers.a.recipe.training.select",
        value="accuracy",
        names=["HasAns_f1"],
    ),
    Case(
        "choice by a metric that no validation row gives",
        job=QUESTIONS,
        overrides=["training.select=NoAns_f1", "data.validation=answerable.parquet"],
        key="training.select",
        value="NoAns_f1",
        names=["data.validation (answerable.parquet)", "f1, exact, HasAns_f1, HasAns_exact, nll"],
    ),
    Case(
        "one student's choice by a metric that no validation row gives",
        job=QUESTIONS,
        overrides=["student.training.select=HasAns_exact", "data.validation=unanswerable.parquet"],
        key="student.training.select",
        value="HasAns_exact",
        names=["data.validation (unanswerable.parquet)", "NoAns_f1"],
    ),
    Case(
        "a sweep's metric that no validation row gives",
        job=QUESTIONS,
        overrides=["search.metric=NoAns_exact", "data.validation=answerable.parquet"],
        key="search.metric",
        value="NoAns_exact",
        names=["data.validation (answerable.parquet)", "HasAns_f1"],
    ),
    Case(
        "a sweep's metric of another task",
        overrides=["search.metric=f1"],
        key="search.metric",
        value="f1",
        names=["accuracy, macro_f1"],
    ),
    Case(
        "a searched choice by no metric",
        overrides=["search.space={training.select: [accuracy, f1]}"],
        key="search.space.training.select",
        value="f1",
        names=["accuracy, macro_f1"],
    ),
    Case(
        "more folds than rows",
        overrides=["teachers.a.folds=61"],
        key="teachers.a.folds",
        value="61",
        names=["60 groups", "folds"],
    ),
    Case("output that is a file", overrides=["output=table.xlsx"], key="output", value="table.xlsx", names=["folder"]),
]


@pytest.mark.parametrize("command", ["check", "distill"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_in_one_line(refused, command, case):
    case.check(refused(command, case))
