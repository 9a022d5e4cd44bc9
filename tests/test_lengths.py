"""A max_length for each model: what it changes, and what it does not."""

from dataclasses import replace

import pytest
from tiny import questions_job, reviews_job

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs

SHORT = 8


def lengths(prepared, name):
    member = prepared.student if name == "student" else prepared.teachers[name]
    return max(max(encoded.open()["length"][:]) for encoded in member.splits.values())


def identities(tree):
    """The fingerprints of the trainings and of the teachers' logits, by name."""
    config = build(tree)
    prepared = prepare(config)
    jobs = teacher_jobs(config, prepared)
    served = [served_teacher(config, prepared, teacher, [], "float32") for teacher in config.teachers]
    served = [replace(teacher, digests=(teacher.name,)) for teacher in served]  # as if they were trained
    student = student_jobs(config, prepared, config.method, served)[0]
    found = {f"logits of {teacher.name}": teacher.key.parts["preprocessing"] for teacher in served}
    found |= {name: job.fingerprint for name, [job] in jobs.items()}
    return prepared, found | {"student": student.fingerprint}, served, student


@pytest.fixture
def tree(tmp_path):
    tree = reviews_job(tmp_path, method="kd")
    model = tree["teachers"][0]["model"]
    short = {**model, "config": {**model["config"], "max_position_embeddings": 10}}
    return tree | {"teachers": [tree["teachers"][0], {**tree["teachers"][1], "model": short, "max_length": SHORT}]}


def test_a_short_teacher_gets_shorter_rows_and_the_others_stay_as_they_are(tree):
    prepared, found, served, student = identities(tree)
    assert lengths(prepared, "b") == SHORT
    assert lengths(prepared, "a") == lengths(prepared, "student") > 10
    assert [teacher.task.max_length for teacher in served] == [32, SHORT]
    assert student.task.max_length == 32
    ids = [prepared.teachers[name].splits["train"].open()["row_id"][:] for name in "ab"]
    assert ids[0] == ids[1], "rows are found by their content"

    plain = [{k: v for k, v in teacher.items() if k != "max_length"} for teacher in tree["teachers"]]
    plain[1]["model"] = plain[0]["model"]
    _, before, *_ = identities(override(tree, {"teachers": plain}))
    assert found["a"] == before["a"]
    assert found["logits of a"] == before["logits of a"]
    assert found["b"] != before["b"]
    assert found["logits of b"] != before["logits of b"]


def test_the_tasks_own_length_is_no_change(tree):
    _, before, *_ = identities(tree)
    _, same, *_ = identities(override(tree, {"student.max_length": 32, "teachers.a.max_length": 32}))
    assert same == before


def test_a_students_own_length_is_in_its_fingerprint_and_in_its_task(tree):
    _, before, *_ = identities(tree)
    prepared, found, _, student = identities(override(tree, {"student.max_length": 9}))
    assert lengths(prepared, "student") == student.task.max_length == 9
    assert found.pop("student") != before.pop("student")
    assert found == before


@pytest.mark.parametrize(
    ("length", "key", "hint"),
    [(None, "task.max_length", "teachers.b.max_length=10"), (11, "teachers.b.max_length", "Use at most 10")],
)
def test_positions_that_do_not_suffice_name_the_key(tree, length, key, hint):
    with pytest.raises(ConfigError) as error:
        prepare(build(override(tree, {"teachers.b.max_length": length})))
    assert error.value.key == key
    assert hint in str(error.value)


def test_where_decisions_are_tokens_all_rows_are_cut_alike(tmp_path):
    tree = override(questions_job(tmp_path), {"student.max_length": 24})
    with pytest.raises(ConfigError, match="question answering") as error:
        prepare(build(tree))
    assert error.value.key == "student.max_length"
