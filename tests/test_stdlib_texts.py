"""The built-in texts, and a tokenizer that is trained on a job's own rows."""

import json
import math

import pytest
from tiny import capitals_job, llama, reviews_job
from transformers import AutoTokenizer

from raykd.cli import main
from raykd.common.errors import ConfigError
from raykd.config.load import build, load, override
from raykd.config.schema import DataConfig
from raykd.data.source import check_disjoint, load_rows
from raykd.data.stdlib import stdlib, stdlib_rows
from raykd.plan.prepare import prepare

JOB = "jobs/stdlib_lm.yaml"


def test_rows_are_whole_files_and_no_file_is_in_two_splits():
    data = load(JOB).data
    splits = {name: load_rows(data, name)["file"][:] for name in ("train", "validation", "test")}
    assert [len(files) for files in splits.values()] == [30, 3, 20]
    assert len(set().union(*splits.values())) == 53
    check_disjoint(data)
    with pytest.raises(ConfigError, match="same rows"):
        check_disjoint(DataConfig(source="builtin:stdlib", train="train[:9]", validation="train[8:]", test="train[:1]"))
    every = stdlib([(0, stdlib_rows())])
    assert "json/decoder.py" in every["file"][:]
    assert all(every["text"][:])


def test_a_tokenizer_is_trained_once_and_by_content(tmp_path):
    tree = capitals_job(tmp_path)
    model = {"config": llama(vocab_size=320), "tokenizer": {"train_bpe": 300}}
    for key in ("teachers.a", "teachers.b", "student"):
        tree = override(tree, {f"{key}.model": model})
    prepared = prepare(build(tree))
    (folder,) = (tmp_path / "runs" / "store" / "tokenizers").iterdir()
    assert prepared.student.model.spec.tokenizer == str(folder)
    assert prepared.teachers["a"].model is prepared.student.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 300
    assert tokenizer.decode(tokenizer("anna lives in ✓ oslo\n")["input_ids"]) == "anna lives in ✓ oslo\n"
    assert tokenizer.eos_token == "<eos>"
    assert prepared.student.splits["train"].open()[0]["labels"][-1] == tokenizer.eos_token_id
    prepare(build(tree))
    assert len([*folder.parent.iterdir()]) == 1
    prepare(build(override(tree, {"data.train": "train[:12]"})))
    assert len([*folder.parent.iterdir()]) == 2


def refused(tree, *parts):
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    for part in parts:
        assert part in str(error.value)


def test_only_language_models_from_scratch_train_a_tokenizer(tmp_path):
    tree = reviews_job(tmp_path)
    other = override(tree, {"student.model.tokenizer": {"train_bpe": 300}})
    refused(other, "student.model.tokenizer.train_bpe = 300", "only text generation")
    refused(override(tree, {"student.model.tokenizer": {"train_bpe": 30}}), "train_bpe = 30", "at least 300")
    given = {"pretrained": "some/model", "tokenizer": {"train_bpe": 300}}
    refused(override(tree, {"student.model": given}), "student.model.tokenizer", "a pretrained model needs")


@pytest.mark.slow
def test_the_job_runs_at_a_smaller_size(tmp_path, ray_cluster):
    sizes = {"tokenizer.train_bpe": 400, "config.vocab_size": 400, "config.hidden_size": 32}
    overrides = [f"{key}.model.{name}={value}" for key in ("teachers.*", "student") for name, value in sizes.items()]
    overrides += ["data.train=train[3:5]", "data.validation=train[8:9]", "data.test=train[11:13]"]
    overrides += ["training.steps=30", "training.eval_every=15", f"output={tmp_path}"]
    assert main(["distill", JOB, *overrides]) == 0
    results = json.loads((tmp_path / "stdlib_lm" / "results.json").read_text())
    assert results["headline"] == "nll"
    names = ["llama-a", "llama-b", "llama-c", "ensemble", "baseline", "student"]
    scores = {run["name"].split(" ")[0]: run["metrics"]["test"] for run in results["runs"]}
    assert [*scores] == names
    assert all(4.0 < found["nll"] < math.log(400) for found in scores.values())  # below that of a uniform guess
    assert all(found["perplexity"] == pytest.approx(math.exp(found["nll"])) for found in scores.values())
