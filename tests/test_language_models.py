"""Language models: their states at the decisions and their head give the logits that the whole model gives."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from architectures import SETTINGS, kinds, small_config
from datasets import Dataset, concatenate_datasets
from tiny import bert, capitals_job, llama, save_bytes_tokenizer
from transformers import AutoTokenizer

from raykd.common.errors import ConfigError, DivergedError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.data.encoding import encode
from raykd.data.split import Split
from raykd.models.language import States, misfit
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.prediction import autocast
from raykd.plan import model_check
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs, teacher_jobs
from raykd.tasks import make_task
from raykd.tasks.text_generation import TextGeneration
from raykd.training.agreement import Counts
from raykd.training.metrics import TrainMetrics

TASK = make_task(TaskConfig(type="text-generation", max_length=32))
SCALED = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.05, "head_dim": 16},
    "cohere": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 5.0},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(save_bytes_tokenizer(tmp_path_factory.mktemp("bytes")))


def load(config, tokenizer):
    opened = open_model(ModelConfig(config=config, tokenizer=tokenizer), TASK, "student.model")
    return load_model(opened, 0, opened.processor).eval(), opened.processor


@pytest.mark.parametrize("kind", SCALED)
def test_decisions_are_the_whole_models_logits(kind, tokenizer):
    model, processor = load(llama(model_type=kind, num_key_value_heads=2, **SCALED[kind]), tokenizer)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    assert misfit(model) == ""
    encoded = TASK.encode({"prompt": ["ab", "c"], "completion": ["c", "defg"]}, processor, True)
    batch = TASK.collate(encoded, processor)
    positions = batch.inputs["positions"]
    plain = {name: values for name, values in batch.inputs.items() if name != "positions"}
    with torch.no_grad():
        outputs = model(**batch.inputs)
        whole = model(**plain).logits[torch.arange(2)[:, None], positions, :260]
    assert isinstance(outputs, States)
    torch.testing.assert_close(TASK.decisions(outputs, batch), whole)
    assert whole.abs().max() > 0.04
    assert model.generate(**plain, max_new_tokens=3, do_sample=False).shape == (2, plain["input_ids"].shape[1] + 3)


def test_the_head_computes_in_fp32_under_autocast(tokenizer):
    model, processor = load(llama(), tokenizer)
    batch = TASK.collate(TASK.encode({"text": ["abcdefgh"]}, processor, True), processor)
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        outputs = model(**batch.inputs)
        inside = TASK.decisions(outputs, batch)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(TASK.decisions(outputs, batch), inside, rtol=0, atol=0)
    assert inside.unique().numel() > 0.9 * inside.numel()  # in bf16 many would tie


def test_a_model_that_sees_the_next_token_is_refused(tokenizer, monkeypatch):
    handler, said = logging.Handler(), []
    monkeypatch.setattr(handler, "emit", said.append)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    model, _ = load(bert() | {"vocab_size": 264}, tokenizer)
    assert "sees what it is to predict" in misfit(model)
    assert said == [], "no advice of the library's before that one line"
    model, _ = load(bert() | {"vocab_size": 264, "is_decoder": True}, tokenizer)
    assert misfit(model) == ""


def test_a_head_that_raykd_does_not_know_is_refused(tokenizer):
    model, _ = load(llama(), tokenizer)
    whole = type(model).forward

    def doubled(*args, **inputs):
        outputs = whole(model, *args, **inputs)
        outputs.logits = outputs.logits * 2
        return outputs

    plain = model.forward
    model.forward = lambda **inputs: plain(**inputs) if "positions" in inputs else doubled(**inputs)
    assert "not those of its head" in misfit(model)


def refused(tree, *parts):
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    line = str(error.value)
    for part in parts:
        assert part in line, line
        line = line[line.index(part) + len(part) :]


def a_and_b_swapped(folder):
    """A tokenizer like the jobs' own, apart from the numbers of two letters."""
    saved = json.loads((save_bytes_tokenizer(folder) / "tokenizer.json").read_text())
    words = saved["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    return str(folder)


def test_models_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    tree = capitals_job(tmp_path)
    small = override(tree, {"student.model.config.vocab_size": 259})
    refused(small, "student.model.tokenizer", "260 tokens", "only 259", "student.model.config.vocab_size")
    short = override(tree, {"student.model.config.max_position_embeddings": 32})
    refused(short, "task.max_length = 64", "32 positions")
    strange = override(tree, {"teachers.a.model.tokenizer": a_and_b_swapped(tmp_path / "other")})
    named = (
        "teachers.a.model.tokenizer",
        "data.train",
        "token 1 of row 1 is 'a' (69)",
        "the student's 'a' (68)",
        "later version",
    )
    refused(strange, *named)
    config = ModelConfig(config=llama(vocab_size=1400), tokenizer="")
    load_model(open_model(config, TASK, "m"), 0).save_pretrained(tmp_path / "wide")
    wide = {"pretrained": str(tmp_path / "wide"), "tokenizer": tree["student"]["model"]["tokenizer"]}
    named = ("student.model.tokenizer", "260 tokens", "1,400", "padding")
    refused(override(tree, {"student.model": wide}), *named)
    body = load_model(open_model(ModelConfig(config=llama(tie_word_embeddings=False), tokenizer=""), TASK, "m"), 0)
    body.model.save_pretrained(tmp_path / "body")
    headless = {"pretrained": str(tmp_path / "body"), "tokenizer": tree["student"]["model"]["tokenizer"]}
    refused(override(tree, {"student.model": headless}), "student.model", "no language-model head", "lm_head.weight")


def test_transfer_rows_without_a_completion_are_counted_and_refused(tmp_path):
    tree = capitals_job(tmp_path)
    for empty, named in (("", ("data.transfer = row 0", "1 more row")), (None, ("completion", "transfer", "2 rows"))):
        rows = [{"prompt": f"where is {i}?", "completion": empty} for i in range(2)]
        more = tmp_path / "more.jsonl"
        more.write_text("\n".join(json.dumps(row) for row in [*rows, {"prompt": "a", "completion": " b"}]))
        refused(override(tree, {"data.transfer": str(more)}), *named, "nothing to distil")


def test_messages_count_rows_as_the_user_does_where_long_ones_are_left_out(tmp_path):
    tree = capitals_job(tmp_path)
    prompts = ["x" * 100, "cd", "x" * 100, "ab", *(f"prompt {i}" for i in range(56))]
    pq.write_table(pa.table({"prompt": prompts, "completion": [" c"] * 60}), tmp_path / "data" / "train.parquet")
    strange = override(tree, {"task.long": "drop", "teachers.a.model.tokenizer": a_and_b_swapped(tmp_path / "other")})
    refused(strange, "teachers.a.model.tokenizer", "data.train", "token 0 of row 3 is")


def test_a_loss_that_is_not_finite_names_the_rows_of_each_split(tmp_path):
    tree = capitals_job(tmp_path)
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": f"who {i}", "completion": " c"}) + "\n" for i in range(3)))
    config = build(override(tree, {"data.transfer": str(more), "task.long": "drop", "task.max_length": 35}))
    prepared = prepare(config)
    [job] = student_jobs(config, prepared, Method(type="kd"), ())
    rows = concatenate_datasets([encoded.open() for encoded in job.train])
    train = len(prepared.splits["train"].rows)
    assert train < 24, "some are left out"
    metrics, none = TrainMetrics(job, rows, None, torch.device("cpu")), torch.zeros(())
    numbers = torch.tensor([float("nan"), 0.0, 0.0, 0.0])
    for positions, named in (([train + 2, 4, 1], "[1, 4] of data.train and rows [2] of data.transfer"),
                             ([train], "[0] of data.transfer")):  # fmt: skip
        with pytest.raises(DivergedError) as error:
            metrics.add(0, np.array(positions), 0.1, 1.0, Counts(none, none, none, none), numbers)
        assert f"rows {named}, counted without those that task.long leaves out" in str(error.value)


def test_long_rows_are_left_out_of_every_split_once_and_for_all_models(tmp_path, caplog, monkeypatch):
    tree = override(capitals_job(tmp_path), {"task.max_length": 35})
    whole = prepare(build(override(tree, {"task.long": "split"})))
    with caplog.at_level(logging.INFO, "raykd"):
        some = prepare(build(override(tree, {"task.long": "drop"})))
    for name, split in some.splits.items():
        encoded = whole.student.splits[name].open().with_format("numpy")[:]
        fits = np.setdiff1d(encoded["example"], encoded["example"][encoded["window"] > 0])
        assert 0 < len(fits) < len(whole.splits[name].rows)
        assert (split.ids == whole.splits[name].ids[fits]).all()
        left_out = f"data.{name}: {len(whole.splits[name].rows) - len(fits)} of {len(whole.splits[name].rows)} rows"
        assert left_out in caplog.text
        for member in (some.student, *some.teachers.values()):
            assert member.splits[name].open()["example"][:] == [*range(len(fits))]
    test = some.splits["test"]
    summaries = [(1.0, 0, 2)] * len(test.rows)
    numbered = some.task.evaluate(summaries, some.student.splits["test"].open(), test.rows).predictions
    assert [row["id"] for row in numbered] == fits.tolist(), "the user's rows"
    monkeypatch.setattr(TextGeneration, "_tokenize", None)
    again = prepare(build(override(tree, {"task.long": "drop"})))
    assert again.splits["test"].digest == some.splits["test"].digest
    monkeypatch.undo()
    refused(override(tree, {"task.long": "drop", "task.max_length": 8}), "task.long", "all", "data.train", "8 tokens")
    jobs = []
    for long in ("drop", None):
        config = build(override(tree, {"task.long": long, "task.max_length": 64}))
        jobs.append(teacher_jobs(config, prepare(config)))
    assert [job.fingerprint for [job] in jobs[0].values()] == [job.fingerprint for [job] in jobs[1].values()]


def write_talks(folder, talks):
    folder.mkdir(exist_ok=True)
    rows = "\n".join(json.dumps({"messages": messages}) for messages in talks)
    (folder / "train.jsonl").write_text(rows)
    return {"source": str(folder), "train": "train[:10]", "validation": "train[10:15]", "test": "train[15:]"}


def test_messages_can_have_different_fields(tmp_path):
    """`datasets` reads such messages as JSON, not as a table."""
    talks = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}] for i in range(20)]
    talks[3][1] = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    talks[4][1]["reasoning_content"] = "so"
    tree = capitals_job(tmp_path)
    template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    template += "<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}<end>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = str(save_bytes_tokenizer(tmp_path / "chat", template))
    for member in (*tree["teachers"], tree["student"]):
        member["model"] = member["model"] | {"tokenizer": tokenizer}
    tree["data"] = write_talks(tmp_path / "talks", talks)
    found = prepare(build(tree)).student.splits["train"].open()
    assert found["decisions"][:3] == [4, 4, 4]
    assert found["decisions"][3] > 10
    assert found["left_out"][:] == [i == 4 for i in range(10)]
    file = tmp_path / "talks" / "train.jsonl"
    tools = [{"function": {"name": "f" if i % 2 else "g"}} for i in range(20)]
    rows = [
        json.loads(line) | {"tools": [tool]} for line, tool in zip(file.read_text().splitlines(), tools, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    split = prepare(build(tree)).splits["train"]
    assert split.rows.column_names == ["tools", "messages"]
    named = prepare(build(override(tree, {"data.columns": {"messages": "messages"}}))).splits["train"]
    assert named.digest == split.digest
    misspelt = {"data.columns": {"messages": "messages", "tools": "functions"}}
    refused(override(tree, misspelt), "data.columns.tools", "functions", "no such column")
    for other in ([["f"]] * 20, [{"f": i} for i in range(20)]):
        rows = [row | {"tools": value} for row, value in zip(rows, other, strict=True)]
        file.write_text("\n".join(map(json.dumps, rows)))
        assert prepare(build(tree)).splits["train"].rows.column_names == ["messages"], "tools of another kind"
    for wrong, named in (({"role": "assistant"}, "no content"), ({"content": "a"}, "no role")):
        tree["data"] = write_talks(tmp_path / "talks", [*talks[:7], [talks[7][0], wrong], *talks[8:]])
        refused(tree, "data.columns.messages", "row 7", named)
    tool = {"role": "tool", "content": "s"}
    tree["data"] = write_talks(tmp_path / "talks", [*talks[:6], [tool, talks[0][1]], *talks[7:]])
    for long in ("drop", "truncate"):
        refused(override(tree, {"task.long": long}), "data.train", "row 6", "no tools")


# Kinds that cannot be built at this size, see more than the tokens before, or have a head of their own: refused.
REFUSED = """
axk1 bamba bert-generation big_bird blt codegen cohere_compass_text cpmant data2vec-text dbrx dots1 dots3_note
ernie gemma3n gemma3n_text gemma4_assistant gemma4_unified_assistant granitemoehybrid inkling2_text
inkling_text kimi_linear lfm2_moe mamba2 megatron-bert mimo_v2_flash musicgen musicgen_melody nemotron
prophetnet reformer rembert roberta-prelayernorm roc_bert roformer xlm xlm-roberta-xl xlnet xmod zamba zamba2
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(kinds("CAUSAL_LM").keys() - {*REFUSED}))
def test_every_kind_of_causal_model_is_its_head_on_its_states(kind):
    values = small_config(kind, SETTINGS.get(kind, {})).to_dict() | {"model_type": kind}
    for name in ("id2label", "label2id", "num_labels"):
        values.pop(name, None)
    if kind in ("bert", "camembert", "electra", "roberta", "xlm-roberta"):
        values["is_decoder"] = True  # otherwise they see the tokens that follow
    opened = open_model(ModelConfig(config=values, tokenizer="none"), TASK, "model")
    model = load_model(opened, 0).eval()
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1 and weight.std() < 0.2:
            torch.nn.init.normal_(weight, std=0.2)
    assert misfit(model) == ""


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    gradients = []
    for checkpointing in (False, True):
        model, processor = load(llama(), tokenizer)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        batch = TASK.collate(TASK.encode({"prompt": ["ab"], "completion": ["cdef"]}, processor, True), processor)
        logits = TASK.decisions(model.train()(**batch.inputs), batch)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_check_computes_few_logits_of_long_rows(tmp_path, tokenizer, monkeypatch):
    """Those of two whole rows of 4,096 tokens over a vocabulary of 152,000 would take 33 GB."""
    monkeypatch.setattr(model_check, "_DECISIONS", 5)
    task, words = make_task(TaskConfig(type="text-generation")), AutoTokenizer.from_pretrained(tokenizer)
    rows = Dataset.from_dict({"text": ["abc", "a longer text"]})
    split = Split("train", rows, np.zeros((2, 16), np.uint8), "digest", True)
    found = model_check._two_rows({"train": encode(split, task, words, tmp_path, None)}, task)
    assert found["decisions"] == [3, 5]
    assert task.shapes(found)[:, 0].tolist() == [len(labels) for labels in found["labels"]] == [3, 5]
    assert words.decode(found["labels"][1]) == "text<end>", "the last ones"
    assert task.collate(found, words).labels.shape == (2, 5)
