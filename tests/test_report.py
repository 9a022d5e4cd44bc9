"""`raykd report` on made-up experiments in a real MLflow store, and on one that was really run."""

import csv
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from made_up_sweep import SETTINGS, Sweep, whole_sweep
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console
from tiny import reviews_job

import raykd
from raykd.api import Result
from raykd.cli import main
from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.reports import figure_cache
from raykd.reports.command import report
from raykd.reports.locate import Place, place_of
from raykd.tracking.mlflow_store import local_uri

FIGURES = (
    "w-curve",
    "alpha-temperature",
    "learning-curves",
    "score-latency",
    "teachers-mistakes",
    "reliability",
    "parallel-coordinates",
)


@pytest.fixture
def said():
    return Console(file=io.StringIO(), width=1000)


def new_store(migrated: Path, folder: Path) -> str:
    shutil.copy(migrated, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def uri(migrated_store, tmp_path):
    return new_store(migrated_store, tmp_path)


@pytest.fixture(scope="module")
def sweep(migrated_store, tmp_path_factory):
    """A sweep with failed and cut trials, reported once: (uri, parent's id, folder, what was said)."""
    folder = tmp_path_factory.mktemp("sweep")
    uri = new_store(migrated_store, folder)
    run_id = whole_sweep(uri, seeds=2)
    console = Console(file=io.StringIO(), width=1000)
    report(uri, [run_id], folder / "out", console)
    return uri, run_id, folder / "out", console.file.getvalue()


def table(text: str) -> list[dict[str, str]]:
    """The leaderboard."""
    lines = text[text.index("| method | setting |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_first_line_is_the_answer(sweep):
    *_, folder, said = sweep
    first = (folder / "report.md").read_text().splitlines()[0].strip("*")
    assert first.startswith("The best method on validation, weighted (α = 0.7, T = 4, W = 0.5), scores ")
    assert first.endswith("; the student beats its teachers.")
    assert said.splitlines()[0] == first
    assert f"report: {folder}/report.html" in said


def test_leaderboard_is_by_validation_and_has_everyone(sweep):
    uri, run_id, folder, _ = sweep
    rows = table((folder / "report.md").read_text())
    names = {row["method"].strip("*") for row in rows}
    assert names == {
        "weighted", "kd", "annealing", "born_again", "fine-tuning", "label_smoothing (control)", "kd from a (control)",
        "a (teacher)", "b (teacher)", "c (teacher)", "ensemble",
    }  # fmt: skip
    validation = [float(row["validation"].rstrip("%")) for row in rows]
    assert validation == sorted(validation, reverse=True)
    assert [row["method"] for row in rows if "**" in row["method"]] == ["**weighted**"]
    client = MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    kd = client.search_runs([experiment], "tags.`raykd.arm` = 'kd' and tags.`raykd.role` = 'student'")
    test = [run.data.metrics["final_test/accuracy"] for run in kd]
    row = next(row for row in rows if row["method"] == "kd")
    assert row["seeds"] == "2"
    assert row["test"].startswith(f"{50 * sum(test):.1f}% ± ")
    assert row["time"] == "20 s"


def test_trials_choose_settings_and_are_no_lines(sweep):
    text = (sweep[2] / "report.md").read_text()
    trials = sum(len(s) for s in SETTINGS.values())
    assert f"{trials + 5} trials (random)" in text
    assert "- 2 × weighted: OutOfMemoryError: no room on the GPU" in text
    assert "Not drawn: 5 trials that failed or that pruning stopped." in text
    assert "Corrected for 14 intervals (Bonferroni): those of 6 methods and controls over fine-tuning" in text
    assert "99.64%" in text


def test_the_leaderboard_is_also_a_file_of_numbers(sweep):
    _, run_id, folder, _ = sweep
    shown = table((folder / "report.md").read_text())
    with (folder / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [row["method"].strip("*").split(" (")[0] for row in shown] == [line["name"] for line in lines]
    assert {line["run_id"] for line in lines} == {run_id}
    assert [line["name"] for line in lines if line["best"] == "True"] == ["weighted"]
    for row, line in zip(shown, lines, strict=True):
        assert row["test"].startswith(f"{100 * float(line['test']):.1f}%")
        finished, started = line["trials_finished"], line["trials_started"]
        assert row["trials"] == (started if finished == started else f"{finished} of {started}")
        if row["gain over fine-tuning"]:
            low, high = (100 * float(line[name]) for name in ("gain_low", "gain_high"))
            assert f"{low:+.1f} to {high:+.1f}".replace("-", "−") in row["gain over fine-tuning"]
            assert float(line["gain_low"]) < float(line["gain_95_low"]) < float(line["gain"]), "of one gain alone"
        assert 0 < float(line["test_ece"]) < 1
    weighted = next(line for line in lines if line["name"] == "weighted")
    assert (weighted["seeds"], weighted["metric"]) == ("0 1", "accuracy")
    assert int(weighted["trials_finished"]) == len(SETTINGS["weighted"]) == int(weighted["trials_started"]) - 5


class Page(HTMLParser):
    """What a page asks for from outside, and whether its tags close."""

    VOID = {"meta", "img", "source", "br", "circle", "line", "rect", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.pictures = self.scripts = 0

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.asked += [v for k, v in attributes if k in ("src", "href", "srcset")]
        self.ids |= {found["id"]} if "id" in found else set()
        self.pictures += tag == "picture"
        self.scripts += tag in ("script", "link", "iframe")
        if tag == "img":
            assert found["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_self_contained_and_well_formed(sweep):
    text = (sweep[2] / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.scripts == 0
    assert page.pictures == len(FIGURES)
    links = [asked for asked in page.asked if asked.startswith("http://127.0.0.1:5000/#/experiments/")]
    assert len(links) == 2, "to MLflow's pages of the run and of all runs; nothing is loaded from there"
    assert links[1].endswith("/runs?workflowType=machine_learning")
    pictures = [asked for asked in page.asked if asked not in links]
    assert len(pictures) == 2 * len(FIGURES)
    assert all(asked.startswith("data:image/png;base64,") for asked in pictures)
    assert not re.search(r"url\(|@import", text)
    assert text.index("the student beats its teachers") < text.index("Leaderboard")


def test_figures_are_drawn_for_light_and_dark(sweep):
    for key in FIGURES:
        corners = []
        for suffix in ("", "-dark"):
            with Image.open(sweep[2] / "figures" / f"digits-sweep-{key}{suffix}.png") as picture:
                corners.append(sum(picture.convert("RGB").getpixel((0, 0))))
                colours = picture.convert("RGB").getcolors(1 << 24)
                assert max(count for count, _ in colours) < 0.995 * picture.width * picture.height, "something is drawn"
        assert corners[0] > 700
        assert corners[1] < 150


def test_a_second_report_draws_nothing(sweep, said, monkeypatch):
    uri, run_id, folder, _ = sweep
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(figure_cache, "draw", lambda drawing: pytest.fail(f"{drawing.plot} is drawn again"))
    report(uri, [run_id], folder, said)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_costs_and_examples_come_from_mlflow(sweep):
    text = (sweep[2] / "report.md").read_text()
    assert (
        "| the student (weighted) | 1,000 | 4 kB | 1.00 ms (0.90 to 1.10 ms) | 8.00 ms (7.20 to 8.80 ms) | 1,000 | "
        in text
    )
    assert "3.0 times as fast as the ensemble" in text


def test_the_report_is_in_mlflow(sweep):
    uri, run_id, folder, _ = sweep
    client = MlflowClient(uri)
    assert {f.path for f in client.list_artifacts(run_id, "report")} == {
        "report/report.html", "report/report.md", "report/leaderboard.csv", "report/figures",
    }  # fmt: skip
    logged = Path(client.download_artifacts(run_id, "report/report.html"))
    assert logged.read_text() == (folder / "report.html").read_text()


def test_only_the_report_is_logged_of_its_folder(uri, tmp_path, said):
    made = Sweep(uri, seeds=1)
    made.teachers("ab")
    made.finals(["finetune", "weighted"])
    run_id = made.finish()
    (tmp_path / ".env").write_text("PASSWORD=1")
    report(uri, [run_id], tmp_path, said)
    client = MlflowClient(uri)
    logged = {f.path for f in client.list_artifacts(run_id, "report")}
    assert logged == {"report/report.html", "report/report.md", "report/leaderboard.csv", "report/figures"}
    pictures = {f"report/figures/{file.name}" for file in (tmp_path / "figures").glob("*.png")}
    assert {f.path for f in client.list_artifacts(run_id, "report/figures")} == pictures
    assert pictures


def test_several_side_by_side(sweep, tmp_path, said, monkeypatch):
    uri, run_id, *_ = sweep
    other = Sweep(uri, "squad", percent=True, seeds=2, skill={"weighted": 0.1}, rng=4)
    other.teachers("ab", folds=4, changed=0.001)
    other.finals(["finetune", "weighted"])
    other_id = other.finish()
    monkeypatch.chdir(tmp_path)
    folder = report(uri, [run_id, other_id, run_id], None, said)
    assert folder == tmp_path / "report"
    text = (folder / "report.md").read_text()
    assert text.startswith(
        "**In 1 of 2 experiments the student is shown to beat its teachers (digits sweep); not shown: squad sweep.**"
    )
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith(("| digits", "| squad"))]
    assert [line[6] for line in lines] == ["12.0% (no folds)", "0.1% (4 folds)"]
    assert "test F1" in text
    assert "effects of seeds and test groups of examples (those with the same context)" in text
    assert "a flat curve over W means nothing here" in text
    assert "Score against W: left out: no two values of W below 1 were tried." in text
    page = Page()
    page.feed((folder / "report.html").read_text())
    links = {asked[1:] for asked in page.asked if asked.startswith("#")}
    assert links == page.ids == {"digits-sweep", "squad-sweep"}
    assert (folder / "figures" / "squad-sweep-learning-curves.png").exists()
    assert not MlflowClient(uri).list_artifacts(other_id, "report"), "each run's own report stays what it was"


def test_results_of_several_stores_from_python(migrated_store, tmp_path):
    """Each is found in its own store, though a later command has written to their folder; any iterable will do."""
    results, names = [], ("one", "two")
    for name in names:
        (tmp_path / name).mkdir()
        store = new_store(migrated_store, tmp_path / name)
        made = Sweep(store, name, seeds=2, examples=40)
        made.teachers("a")
        made.finals(["finetune", "kd"])
        results.append(Result(tmp_path, "", [], None, None, {"uri": store, "run_id": made.finish()}))
    folder = raykd.report((result for result in results), output=tmp_path / "out")
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert page.ids == {"one-sweep", "two-sweep"}
    with pytest.raises(ConfigError) as error:
        raykd.report([], output=tmp_path / "none")
    assert error.value.key == "runs"


def test_intervals_over_groups_of_rows(uri, tmp_path, said):
    """The same scores, without groups, with one for every four rows, and with one for every row."""
    found = []
    for groups in (None, 4, 1):
        made = Sweep(uri, command="distill", seeds=2)
        made.teachers("ab")
        made.finals(["finetune", "weighted"])
        if groups:
            of = [i // groups for i in range(400)]
            made.parent.artifact_json({"column": "author", "validation": of, "test": of}, "groups.json")
        folder = report(uri, [made.finish()], tmp_path / str(groups), said)
        found.append((folder / "report.md").read_text())
    alone, grouped, single = (text.splitlines()[0] for text in found)
    assert alone == single, "a group for every row"
    assert alone != grouped
    assert "test groups of examples (those with the same author)" in found[1]
    assert "400 test examples in 100 groups" in found[1]


def test_what_the_command_knew_of_its_data_and_of_those_before_it_is_said(uri, tmp_path, said):
    notes = "data: 3 distinct rows of test are also in train (equal content)\ndata.test: 2 of 9 rows are left out"
    tags = {
        "raykd.data_notes": notes,
        "raykd.extended": "2",
        "raykd.earlier_commands": "raykd sweep a\nraykd sweep b",
        "raykd.versions": "raykd 7",
    }
    made = Sweep(uri, seeds=2, **tags)
    made.teachers("ab")
    made.finals(["finetune", "weighted"])
    text = (report(uri, [made.finish()], tmp_path / "out", said) / "report.md").read_text()
    assert "The sweep was extended 2 times after it had been scored on test." in text
    assert "which continued: raykd sweep a; raykd sweep b" in text
    assert "by raykd 7" in text
    caveats = text[text.index("### Caveats") :]
    assert all(f"- {note}." in caveats for note in notes.splitlines())


def test_experiments_of_one_name_are_told_apart_and_so_are_their_test_rows(uri, tmp_path, said):
    made = []
    for digest in ("a", "a", "b"):
        one = Sweep(uri, command="distill", seeds=1)
        one.parent.dataset("digits-test", digest, "digits", split="test", rows=400)
        one.parent.dataset("digits-train", f"{digest}{len(made)}", "digits", split="train", rows=400)
        one.teachers()
        one.finals(["finetune", "kd"], tagged=False)
        made.append(one.finish())
    titles = [f"digits distill ({run_id[:8]})" for run_id in made]
    for chosen, differ in ((made[:2], False), (made[1:], True)):
        text = (report(uri, chosen, tmp_path / "out", said) / "report.md").read_text()
        assert all(title in text for title, run_id in zip(titles, made, strict=True) if run_id in chosen)
        assert (f"{titles[1]} and {titles[2]} are scored on different test rows." in text) == differ


def test_plain_distill_with_one_seed(uri, tmp_path, said):
    made = Sweep(uri, command="distill", seeds=1)
    made.teachers()
    made.finals(["finetune", "kd"], tagged=False)
    folder = report(uri, [made.finish()], tmp_path / "out", said)
    text = (folder / "report.md").read_text()
    assert text.startswith("**The student, kd (α = 0.7, T = 4), scores ")
    assert "There is one seed: the intervals are over test examples alone" in text
    assert [row["seeds"] for row in table(text) if row["method"] in ("**kd**", "fine-tuning")] == ["1", "1"]
    assert "Corrected for 3 intervals" in text, "those of the headline are simultaneous"
    assert "with one seed it cannot be shown" in text
    assert "All trials: left out" in text
    # A child stands for its experiment, and the same runs make the same report.
    client = MlflowClient(uri)
    experiment = client.get_run(made.id).info.experiment_id
    child = client.search_runs([experiment], "tags.`raykd.role` = 'student'")[0].info.run_id
    again = report(uri, [child], tmp_path / "again", said)
    for name in ("report.md", "report.html"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_metric_that_chooses_need_not_be_the_headline(uri, tmp_path, said):
    """Lower is better, and it is no percentage."""
    made = Sweep(uri, seeds=1, **{"raykd.metric": "validation/nll"})
    made.teachers("a")
    made.trials(["kd", "weighted"])
    made.finals(["finetune", "kd"])
    run = made.child("weighted seed 0", "student", "weighted", raykd__arm="weighted")
    made.score(run, 0.0)
    run.log({"final_validation/nll": 0.1}, 1)  # the best, whatever its accuracy
    run.finish()
    text = (report(uri, [made.finish()], tmp_path / "out", said) / "report.md").read_text()
    assert text.startswith("**The best method on validation, weighted")
    assert table(text)[0]["validation nll"] == "0.1"
    assert "chosen on validation NLL; test is only reported" in text


def test_teachers_alone(uri, tmp_path, said):
    made = Sweep(uri, command="teach")
    made.teachers(misses=0)
    text = (report(uri, [made.finish()], tmp_path / "out", said) / "report.md").read_text()
    assert text.startswith(
        "**There is no student to evaluate: this run has teachers only; the best teacher on validation"
    )
    assert "all of their logits were in the store" in text
    assert "Learning curves: left out" in text


def test_missing_parts_are_listed(uri, tmp_path, said):
    """No ensemble, a method without predictions, a seed that failed, a run that is still going."""
    made = Sweep(uri, seeds=2)
    made.finals(["finetune", "weighted"])
    made.finals(["kd"], left_out=["test"])
    run = made.child("weighted seed 9", "student", "weighted", raykd__arm="weighted")
    run.finish("FAILED", "TrainingError: the loss is nan")
    made.child("weighted seed 10", "student", "weighted", raykd__arm="weighted").log({"validation/accuracy": 0.5}, 1)
    text = (report(uri, [made.finish()], tmp_path / "out", said) / "report.md").read_text()
    missing = text[text.index("### What is missing") : text.index("### How to read this")]
    assert "- weighted seed 9 is left out: TrainingError: the loss is nan." in missing
    assert "- weighted seed 10 is left out: it is running and has no final scores." in missing
    assert re.search(r"- kd seed 0: predictions-test.jsonl.gz cannot be read \(\w+\), so it has no intervals.", missing)
    answer = text.splitlines()[0]
    assert "over fine-tuning" in answer
    assert "teacher" not in answer
    row = next(row for row in table(text) if row["method"] == "kd")
    assert "(" not in row["gain over fine-tuning"]
    assert "Where the teachers were wrong: left out" in text


def test_predictions_of_another_version_or_of_other_examples(uri, tmp_path, said, monkeypatch):
    made = Sweep(uri, seeds=1)
    made.teachers("a")
    made.finals(["finetune"])
    monkeypatch.setattr(made, "row", lambda i, score: {"id": i, "prediction": "x"})
    made.finals(["kd"])
    monkeypatch.setattr(made, "row", lambda i, score: {"id": i + 1, "prediction": "x", "score": score})
    made.finals(["weighted"])
    text = (report(uri, [made.finish()], tmp_path / "out", said) / "report.md").read_text()
    assert "- kd seed 0: predictions-test.jsonl.gz has no 'score' because an older raykd wrote it." in text
    assert "- weighted seed 0: its test examples differ from those of the other runs." in text


def test_names_are_text_not_markup(uri, tmp_path, said):
    made = Sweep(uri, "<b>x</b> | y", seeds=1)
    made.teachers("a")
    made.finals(["finetune"])
    run = made.child("s", "student", "kd", raykd__arm="kd <i>|</i>")
    made.score(run, 0.3)
    run.finish()
    folder = report(uri, [made.finish()], tmp_path / "out", said)
    text = (folder / "report.html").read_text()
    assert "<b>" not in text
    assert "kd &lt;i&gt;|&lt;/i&gt;" in text
    page = Page()
    page.feed(text)
    assert page.open == []
    assert any(row["method"] == r"**kd <i>\|</i>**" for row in table((folder / "report.md").read_text()))


# What a user names, and mistakes ---------------------------------------------------------------------


def test_folder_file_and_yaml_name_their_run(tmp_path):
    uri, run_id = f"sqlite:///{tmp_path}/mlflow.db", "0123456789abcdef" * 2
    tree = reviews_job(tmp_path)
    results = tmp_path / "runs" / "reviews" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"mlflow": {"uri": uri, "run_id": run_id}}))
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tree))
    for named in (results.parent, results, job):
        assert place_of(str(named), None) == Place(uri, run_id, results.parent)
    assert place_of(str(job), "http://elsewhere:5000").uri == "http://elsewhere:5000"
    assert place_of(run_id, uri) == Place(uri, run_id, None)


@pytest.mark.parametrize("variable", [True, False])
def test_an_id_is_looked_up_where_jobs_write(tmp_path, monkeypatch, variable):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAYKD_HOME", raising=False)
    if variable:
        monkeypatch.setenv("RAYKD_HOME", str(tmp_path / "home"))
    tree = reviews_job(tmp_path)
    del tree["output"]
    assert place_of("0" * 32, None).uri == local_uri(Path(build(tree).output))


def test_ones_own_credentials_are_not_sent_to_a_server_that_anothers_file_names(tmp_path, monkeypatch):
    uri, results = "http://tracking.example:5000", tmp_path / "results.json"
    results.write_text(json.dumps({"mlflow": {"uri": uri, "run_id": "0" * 32}}))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert place_of(str(tmp_path), None).uri == uri, "one's own"
    monkeypatch.setattr(os, "getuid", lambda: results.stat().st_uid + 1)
    with pytest.raises(ConfigError) as caught:
        place_of(str(tmp_path), None)
    assert caught.value.key == "--uri"
    assert "hunter2" not in str(caught.value)
    assert place_of(str(tmp_path), uri).uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}/")
    assert place_of(str(tmp_path), None).uri == uri, "the user's own server"


@pytest.mark.parametrize("copied", [False, True])
def test_the_report_of_moved_runs_reads_the_moved_database(tmp_path, migrated_store, copied):
    old, new = tmp_path / "runs", tmp_path / "moved here"
    (old / "reviews").mkdir(parents=True)
    shutil.copy(migrated_store, old / "mlflow.db")
    uri = f"sqlite:///{old}/mlflow.db"
    run_id = MlflowClient(uri).create_run("0").info.run_id
    (old / "reviews" / "results.json").write_text(json.dumps({"mlflow": {"uri": uri, "run_id": run_id}}))
    (shutil.copytree if copied else shutil.move)(old, new)
    assert place_of(str(new / "reviews"), None).uri == f"sqlite:///{new}/mlflow.db"
    shutil.copy(migrated_store, new / "mlflow.db")  # one that does not have the run: results are where they say
    assert place_of(str(new / "reviews"), None).uri == uri


def mistake(capsys, *arguments: str) -> str:
    assert main(["report", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_mistakes_are_one_line(sweep, uri, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    unknown = "0" * 32
    assert "there is no such file or folder" in mistake(capsys, "nowhere")
    assert f"there is no {tmp_path}/results.json" in mistake(capsys, str(tmp_path))
    (tmp_path / "results.json").write_text('{"name": "x"}')
    assert "does not name its MLflow run" in mistake(capsys, str(tmp_path))
    assert f"RUN = {unknown}: MLflow at {uri} did not return it" in mistake(capsys, unknown, "--uri", uri)
    text = mistake(capsys, unknown)
    assert f"--uri = sqlite:///{tmp_path}/runs/mlflow.db: there is no such database" in text
    assert not (tmp_path / "runs").exists(), "no empty one is made"
    client = MlflowClient(uri)
    other = client.create_run(client.create_experiment("other")).info.run_id
    assert "it is not a run of raykd" in mistake(capsys, other, "--uri", uri)
    (tmp_path / "file").touch()
    text = mistake(capsys, sweep[1], "--uri", sweep[0], "--output", str(tmp_path / "file"))
    assert f"--output = {tmp_path}/file: it cannot be written to" in text


def test_credentials_are_refused_and_not_shown(said):
    with pytest.raises(ConfigError) as error:
        report("http://me:hunter22@host:5000", ["0" * 32], None, said)
    assert "hunter22" not in str(error.value)


# A real run -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_report_of_a_real_run(tmp_path, said, capsys):
    from raykd.experiment.command import run_experiment

    tree = reviews_job(tmp_path, method="weighted")
    scored = run_experiment(build(tree), "distill", said)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    assert main(["report", str(job)]) == 0
    sentence = capsys.readouterr().out.partition("\nreport: ")[0]
    assert "The student, weighted" in sentence
    results = json.loads((tmp_path / "runs" / "reviews" / "results.json").read_text())
    assert results["verdict"] == " ".join(sentence.split()), "one run, one judgement"
    assert results["verdict"] in said.file.getvalue()
    text = (tmp_path / "runs" / "reviews" / "report" / "report.md").read_text()
    rows = {row["method"].partition(" – ")[0].strip("*"): row for row in table(text)}
    assert set(rows) == {"a (teacher)", "b (teacher)", "ensemble", "fine-tuning", "weighted"}
    assert rows["weighted"]["test"] == f"{100 * scored[-1].metrics['test']['accuracy']:.1f}%"
    assert rows["weighted"]["setting"] == "α = 0.5, T = 2, W = 0.75"
    assert re.search(r"\+|−|0\.0", rows["weighted"]["gain over fine-tuning"])
    assert "What is missing" not in text
