"""How long `raykd check --cluster` may measure, and what stands for a dry run that would take longer. Without Ray."""

import dataclasses
import time
from types import SimpleNamespace

import pytest
from tiny import reviews_job

from raykd.checks.probe import Limit, Timings
from raykd.checks.typical import dry_run_seconds, typical_overheads
from raykd.checks.workload import Stage
from raykd.cluster.resources import Resources
from raykd.config.load import build, override
from raykd.plan.prepare import prepare
from raykd.plan.trainings import teacher_jobs
from raykd.training.access import Training

# step 2, token 0.1, row 0.5, start 7, cold 100, evaluation 3, end 11; a model of 1,000 bytes
TIMINGS = Timings(2.0, 0.1, 0.5, 7.0, 100.0, 3.0, 11.0, 0.9, 1.1, 1000)


@pytest.fixture
def job(tmp_path):
    config = build(override(reviews_job(tmp_path), {"training.steps": 400, "teachers.a.folds": 3}))
    return config, prepare(config)


def test_a_quarter_of_what_is_expected_and_at_least_20_seconds(job):
    config, prepared = job
    trainings = [Training(one, Resources(1, 1, 0)) for one in teacher_jobs(config, prepared)["a"]]
    limit = Limit(time.monotonic(), [Stage("teachers", trainings, at_once=2)])
    assert limit.seconds == 20, "nothing is known yet"
    limit.expect(0.05)  # 3 trainings of 400 steps, two at a time: 30 s
    assert limit.expected == pytest.approx(30)
    assert limit.seconds == 20
    limit.expect(1.0)
    assert limit.seconds == pytest.approx(150)
    assert not limit.over()
    assert Limit(time.monotonic() - 10, []).over(0.4)
    assert not Limit(time.monotonic() - 10, []).over(0.9)


def test_what_is_not_measured_is_longer_where_ray_starts_slowly(job):
    config, prepared = job
    workload = SimpleNamespace(command="distill")
    once, thrice = (typical_overheads(config, prepared, workload, [TIMINGS], speed) for speed in (1.0, 3.0))
    assert once.typical
    assert once.stages.keys() == {"teacher", "student"}
    for name in ("begin", "round_start", "between", "end", "run"):
        assert getattr(thrice, name) == pytest.approx(3 * getattr(once, name)) != 0
    assert once.passes == thrice.passes == {"a": 0.5, "b": 0.5}, "as measured: they are models of the same size"


def test_a_given_teacher_takes_as_long_as_it_has_weights(job, tmp_path):
    config, prepared = job
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "model.safetensors").write_bytes(bytes(4000))
    member = prepared.teachers["b"]
    given = dataclasses.replace(member, model=dataclasses.replace(member.model, folder=tmp_path / "given"))
    prepared = dataclasses.replace(prepared, teachers=prepared.teachers | {"b": given})
    config = config.model_copy(update={"teachers": [t.model_copy(update={"recipe": None}) for t in config.teachers]})
    found = typical_overheads(config, prepared, SimpleNamespace(command="sweep"), [TIMINGS], 1.0)
    assert found.passes == {"a": 0.5, "b": 2.0}
    assert found.stages.keys() == {"teacher", "trial", "student"}


def test_length_of_a_dry_run(job):
    """Three fold models, teacher b, and a student and a baseline of one seed: six trainings, two at a time."""
    config, prepared = job
    workload = SimpleNamespace(command="distill", students=[SimpleNamespace(at_once=2)], round_starts=1)
    typical = typical_overheads(config, prepared, workload, [TIMINGS], 1.0)
    own = typical.begin + sum(typical.stages.values()) + typical.round_start + typical.end + 6 * typical.run
    assert dry_run_seconds(config, workload, [TIMINGS], typical) == pytest.approx(own + 6 * (7 + 2 + 3 + 11) / 2)
