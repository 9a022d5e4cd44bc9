"""Passwords, keys and tokens: in nothing that raykd writes, whatever characters they hold."""

import json
import logging
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from ray._private.runtime_env.packaging import _get_excludes

from raykd.cluster.submit import _excluded
from raykd.common import redaction
from raykd.common.errors import ConfigError
from raykd.common.redaction import Formatter, print_exception, redact, remember, scrub
from raykd.config.load import build
from raykd.config.schema import Config
from raykd.search.journal import Journal
from raykd.tracking.experiment import _text
from raykd.tracking.results import write_results

# The same passwords every time, so that a failure is a change in the code. No NUL: no environment takes one.
quick = settings(max_examples=200, derandomize=True, database=None)
PASSWORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=6, max_size=30)
ODD = [
    "it's-s3cret",
    'quo"ted1',
    "back\\slash",
    "a/b?c#d@e:f",
    "x%2Fy&z=1",
    "two words",
    "tab\tand\nline",
    "p@ss'w/rd",
    "<&>pass",
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())


def job(**sections) -> dict:
    return {
        "name": "x",
        "task": {"type": "text-classification"},
        "data": {"source": "some/set"},
        "teachers": [{"name": "a", "model": "some/model"}],
        "student": {"model": "other/model"},
        **sections,
    }


def written(value: object) -> list[str]:
    """A value as raykd writes values: config.yaml, the journal and results.json, a parameter of MLflow."""
    safe = redact(value)
    return [yaml.safe_dump(safe), json.dumps(safe), json.dumps(safe, ensure_ascii=False), _text(value)]


def absent(secret: str, texts: list[str], without: list[str]) -> None:
    """The secret is in none of these texts in any spelling, but for what would be there without it."""
    spellings = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    spellings |= {secret.replace("'", "''"), " ".join(secret.split()), secret.strip()} - {""}
    if without:
        assume(not any(spelled in text for spelled in spellings for text in without))
    for text in texts:
        assert not any(spelled in text for spelled in spellings), text


def odd(test):
    for password in ODD:
        test = example(password)(test)
    return test


@odd
@given(PASSWORD)
@quick
def test_a_config_is_written_without_the_passwords_of_its_addresses(password):
    assume(password.strip())

    def tree(secret: str) -> dict:
        return {
            "storage": f"s3://AKIDAKID:{secret}@bucket/x?region=us",
            "nested": [{"source": f"https://anna:{secret}@host/rows.csv"}],
            "pair": (1, f"see s3://k:{quote(secret, safe='')}@bucket/y"),
            "query": f"s3://bucket/x?region=us&secret_key={quote(secret, safe='')}",
        }

    absent(password, written(tree(password)), [*written(tree("")), "s3://***@bucket", "AKIDAKID", "k:secret_key=***"])
    assert redact(tree(password))["storage"] == "s3://***@bucket/x?region=us"
    assert redact(tree(password))["query"] == "s3://bucket/x?region=us&secret_key=***"


@odd
@given(PASSWORD)
@quick
def test_a_secret_that_is_known_is_in_no_text(password):
    """An error of another library repeats it in a spelling of its own, without an address around it."""
    assume(len(password.strip()) >= 6)
    redaction._known.clear()
    remember({"logits": {"storage": f"s3://AKIDAKID:{password}@bucket/x"}})
    spellings = [
        password,
        quote(password, safe=""),
        json.dumps({"a": password}),
        repr([password]),
        yaml.safe_dump(password, width=10**6),
    ]
    around = "403 for ({}) there"
    absent(
        password,
        [scrub(around.format(s)) for s in spellings],
        [around, "***", yaml.safe_dump("***"), '{"a": ""}', "['']"],
    )


@pytest.mark.parametrize("password", ODD)
@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "PGPASSWORD",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "S3_SECRET_KEY",
    ],
)
def test_a_variable_of_the_environment_is_in_no_text(monkeypatch, name, password):
    monkeypatch.setenv(name, password)
    said = [
        f"refused: {password}",
        json.dumps([password]),
        repr(password),
        quote(password),
        yaml.safe_dump({"a": password}),
    ]
    absent(password, [scrub(text) for text in said], [])


def test_a_proxys_password_is_in_no_text(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:it's-s3cret@proxy:3128")
    assert scrub("407 for it's-s3cret at proxy:3128") == "407 for *** at proxy:3128"


def test_a_users_name_is_no_secret_without_its_address(monkeypatch):
    """It is often the name of a folder or a database, too: a path without it leads nowhere."""
    monkeypatch.setenv("HTTPS_PROXY", "http://ubuntu:s3cret-word@proxy:3128")
    address = "postgresql://mlflow:pa55word@host/mlflow"
    remember({"tracking": {"uri": address}})
    assert redact({"model": "/home/ubuntu/runs/mlflow.db"}) == {"model": "/home/ubuntu/runs/mlflow.db"}
    assert redact(address) == "postgresql://***@host/mlflow"
    remember("https://0123456789abcdef@host/rows.csv")  # a token
    assert scrub("0123456789abcdef is not known") == "*** is not known"


@pytest.mark.parametrize(
    "text",
    [
        "see https://github.com/a/b and a@b.c",
        "https://medium.com/@anna/post",
        "s3://bucket/raykd@v2/x?region=us-east-1",
        "http://host:5000/x?page=2",
        "sqlite:////data/@me/mlflow.db",
        "train[:10%]",
        "anna: hello",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text):
    assert scrub(text) == text
    assert redact(text) == text


def test_values_that_are_no_text_stay_as_they_are():
    assert redact({"a": 1, "b": [None, True, 0.5]}) == {"a": 1, "b": [None, True, 0.5]}


@pytest.mark.parametrize("password", ODD)
def test_an_error_shows_no_password(password):
    address = f"https://anna:{password}@host/rows.csv"
    error = ConfigError("data.source", address, f"no answer from {quote(address)}", "Check it")
    remember(address)
    absent(password, [str(error), str(ConfigError("data", {"source": address}, "no", "Check it"))], [])
    long = ConfigError("data.source", f"https://anna:{'long' * 100}@host/x", "no answer", "Check it")
    assert "longlong" not in str(long), "it is hidden before the value is cut short"
    with pytest.raises(ConfigError) as caught:
        build(job(data={"source": address, "trian": "x"}, logits={"mode": f"s3://k:{password}@b"}))
    absent(password, [str(caught.value)], [])


@pytest.mark.parametrize("password", ODD)
def test_a_log_line_and_a_traceback_show_no_password(password, capsys):
    remember(f"s3://AKIDAKID:{password}@bucket/x")
    try:
        raise KeyError(password)
    except KeyError as error:
        found = sys.exc_info()
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed: %s", (error,), found)
        print_exception(*found)
    absent(password, [Formatter("%(message)s").format(record), capsys.readouterr().err], [])


@pytest.mark.parametrize("password", ODD)
def test_the_files_of_a_run_hold_no_password(tmp_path, password):
    config: Config = build(job(logits={"storage": f"s3://AKIDAKID:{password}@bucket/x"}))
    journal = Journal(tmp_path, config.model_dump(), resume=False)
    journal.close()
    assert Journal(tmp_path, config.model_dump(), resume=True).trials == {}, "it is known again"
    write_results(tmp_path, [], {"verdict": f"s3://AKIDAKID:{password}@bucket/x is full"})
    absent(password, [path.read_text() for path in tmp_path.iterdir()], [])
    first = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert first["config"]["logits"]["storage"] == "s3://***@bucket/x"


def test_files_that_usually_hold_secrets_are_not_uploaded(tmp_path):
    """By Ray's own reading of the patterns."""
    excludes = _get_excludes(tmp_path, _excluded(tmp_path, Path("out")))
    (tmp_path / "sub").mkdir()
    for name in (".env", "sub/.env.local", ".netrc", "id_ed25519", "job.yaml", "cacert.pem", "sub/environment.yaml"):
        (tmp_path / name).touch()
    left_out = {file.name for file in tmp_path.rglob("*") if file.is_file() and excludes(file)}
    assert left_out == {".env", ".env.local", ".netrc", "id_ed25519"}
