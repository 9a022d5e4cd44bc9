"""`raykd check`: everything that can be known before a training, with and without the hub."""

from pathlib import Path

import pytest
import yaml
from tiny import reviews_job

from raykd.cli import main
from raykd.config.load import override

JOBS = Path(__file__).parent.parent / "jobs"
NOT_CHECKED = "not checked (hub unreachable and not cached):"


def write(tree: dict, folder: Path) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def unchecked(text: str) -> list[str]:
    return [line.strip() for line in text.partition(NOT_CHECKED)[2].splitlines() if line.startswith("  ")]


def test_prints_what_would_run(tmp_path, capsys):
    tree = reviews_job(tmp_path, method={"type": "weighted", "W": 0.5})
    tree = override(tree, {"teachers.a.folds": 3, "student.seed": [0, 1], "data.transfer": "train[100:]"})
    assert main(["check", write(override(tree, {"data.test": "train[80:100]"}), tmp_path)]) == 0
    text = capsys.readouterr().out
    for line in (
        "data.train: 60 rows, 60 encoded for the student",
        "data.transfer: 20 rows",
        "labels: bad, good",
        "teacher a: 3 trainings of 10 steps, 0 done already",
        "teacher b: 1 training of 10 steps, 0 done already",
        "baseline: 2 trainings of 10 steps, 0 done already, seeds 0, 1",
        "student: weighted W=0.5, distilled from 2 teachers, 2 trainings of 10 steps, seeds 0, 1\n",
        f"MLflow: sqlite:///{tmp_path}/runs/mlflow.db",
        f"files: {tmp_path}/runs/reviews, store: {tmp_path}/runs/store",
    ):
        assert line in text
    assert text.splitlines()[-2] == "everything is valid"
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_it_ends_with_the_next_command(tmp_path, capsys):
    path = write(reviews_job(tmp_path), tmp_path)
    assert main(["check", path, "student.seed=[0, 1]"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: raykd distill {path} 'student.seed=[0, 1]'"


def test_a_teacher_that_equals_a_baseline_is_named(tmp_path, capsys):
    changes = {"student.seed": [1, 2, 3], "teachers.b.recipe.training.learning_rate": 0.01}
    tree = override(reviews_job(tmp_path), changes)
    assert main(["check", write(tree, tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "same model" in line]
    assert "baseline seed 1 " in line, "teacher b has the seed 2, but another learning rate"
    assert "teacher a" in line
    assert "teachers.a.recipe.seed" in line


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ({"type": "weighted", "W": 1.0}, {}, "method.W = 1.0"),
        ({"type": "weighted", "teacher": "a"}, {}, "one teacher"),
        ({"type": "weighted", "W": 0.99}, {}, None),
        ({"type": "weighted", "W": 1.0, "all_wrong": "skip"}, {}, None),
        ({"type": "weighted", "W": 1.0}, {"search.space": {"method.W": [0.5, 1.0]}}, None),
        ("kd", {}, None),
    ],
)
def test_weights_that_are_all_equal_are_warned_of(tmp_path, caplog, method, changes, said):
    command = ["check", write(override(reviews_job(tmp_path, method=method), changes), tmp_path)]
    assert main(command) == 0
    warnings = [record.message for record in caplog.records if "plain KD" in record.message]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_names_and_labels_are_text_not_markup(tmp_path, capsys):
    tree = reviews_job(tmp_path, method="finetune", baseline=False)
    assert main(["check", write(override(tree, {"task.labels": ["[ham]", "[/INST]"]}), tmp_path)]) == 0
    assert "labels: [ham], [/INST]" in capsys.readouterr().out


def test_student_without_teachers(tmp_path, capsys):
    assert main(["check", write(reviews_job(tmp_path, method="finetune", baseline=False), tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "student: finetune, without teachers" in text
    assert "baseline" not in text


@pytest.mark.parametrize("name", ["squad_electra", "squad_minilm", "sst2_minilm", "sst2_small"])
def test_offline_lists_unreachable_hub_ids(tmp_path, capsys, name):
    """The shipped jobs name hub ids: what does not need them is checked, and the rest is listed."""
    job = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    assert main(["check", "--offline", str(JOBS / f"{name}.yaml"), f"output={tmp_path}"]) == 0
    text = capsys.readouterr().out
    student = job["student"]["model"]
    student = student["pretrained"] if isinstance(student, dict) else student
    expected = [f"teachers.{t['name']}.model = {t['model']}" for t in job["teachers"]]
    expected += [f"student.model = {student}", f"data.source = {job['data']['source']}"]
    assert sorted(unchecked(text)) == sorted(expected)
    assert f"distilled from {len(job['teachers'])} teachers" in text
    assert f" of {job['training']['epochs']} epochs" in text
    assert text.splitlines()[-2] == "everything else is valid"


def test_without_offline_it_is_an_error(tmp_path, capsys):
    assert main(["check", str(JOBS / "squad_electra.yaml"), f"output={tmp_path}"]) == 2
    assert "google/electra-large-discriminator: it is not a local folder, and the hub" in capsys.readouterr().err


def test_offline_checks_everything_that_is_local(tmp_path, capsys):
    """Digits needs no hub."""
    assert main(["check", "--offline", str(JOBS / "digits.yaml"), f"output={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert NOT_CHECKED not in text
    assert "data.test: 700 rows, 700 encoded for the student" in text
    job = yaml.safe_load((JOBS / "digits.yaml").read_text())
    assert f"teacher vit-c: 1 training of {job['training']['steps']} steps, 0 done already" in text
    assert text.splitlines()[-2] == "everything is valid"


@pytest.mark.parametrize(
    ("away", "overrides", "line"),
    [
        # The student is on the hub; the data and the teachers are here, and wrong.
        ("student.model", {"data.columns.text": "sentence"}, "data.columns.text = sentence: train has no such column"),
        ("student.model", {"data.test": "train[50:70]"}, "data.test = train[50:70]: it is cut from the same rows"),
        ("student.model", {"teachers.b.model.config.hidden_sizes": 3}, "teachers.b.model.config.hidden_sizes = 3: "),
        ("student.model", {"teachers.b.folds": 61}, "teachers.b.folds = 61: "),
        ("student.model", {"training.select": "f1"}, "training.select = f1: "),
        ("student.model", {"teachers.b.num_cpus": 5000}, "teachers.b.num_cpus = 5000 CPU, 0 GPU: "),
        # The data are on the hub; the models are here, and wrong.
        ("data.source", {"task.max_length": 65}, "task.max_length = 65: "),
        ("data.source", {"student.model.tokenizer": None}, "student.model.tokenizer = None: "),
        ("data.source", {"teachers.a.recipe": None}, "teachers.a.model = "),
        ("teachers.a.model", {"student.model.config.vocab_size": 20}, "student.model.tokenizer = "),
    ],
)
def test_offline_still_refuses_invalid_input(tmp_path, capsys, away, overrides, line):
    tree = override(reviews_job(tmp_path), {away: "some/hub-id"})
    job = write(tree, tmp_path)
    assert main(["check", "--offline", job]) == 0
    assert unchecked(capsys.readouterr().out) == [f"{away} = some/hub-id"]
    assert main(["check", "--offline", write(override(tree, overrides), tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"raykd: {line}")


def test_offline_tokenizer_of_the_hub(tmp_path, capsys):
    tree = override(reviews_job(tmp_path), {"student.model.tokenizer": "some/hub-id"})
    assert main(["check", "--offline", write(tree, tmp_path)]) == 0
    text = capsys.readouterr().out
    assert unchecked(text) == ["student.model.tokenizer = some/hub-id"]
    assert "data.train: 60 rows\n" in text
