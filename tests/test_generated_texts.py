"""What language models write: greedily, the same in any batch, and scored as SQuAD and ROUGE score it."""

import gzip
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import capitals_job, llama, save_bytes_tokenizer
from transformers import GenerationConfig

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.experiment.teacher_texts import Writing, write
from raykd.models.decoding import generate, note_end_tokens
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, teacher_jobs
from raykd.predictions.predictor import Predictor
from raykd.tasks import make_task
from raykd.tasks.generated import METRICS, answers_of, score
from raykd.training.loop import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], (1.0, 1.0, 0.8)),  # ROUGE keeps articles: 2 of 3 and 2 of 2 words
        ("in Paris, France", ["Rome", "Paris"], (0.0, 0.5, 0.5)),  # 1 of 3 and 1 of 1
        ("c b a x", ["a b c"], (0.0, 0.8, 2 / 7)),  # without the article a: b c of c b x; in order: one of 4 and 3
        ("", ["no"], (0.0, 0.0, 0.0)),
        ("b d c e", ["b c d e"], (0.0, 1.0, 0.75)),
        ("<think>\nRome?\n</think>\n\nParis", ["Paris"], (1.0, 1.0, 1.0)),
        ("so it is\n</think>yes", ["<think>\n\n</think>\n\nyes"], (1.0, 1.0, 1.0)),
        ("<think>Paris, Paris", ["Paris"], (0.0, 0.0, 0.0)),  # thoughts that do not end
    ],
)
def test_scores_by_hand(text, answers, expected):
    assert tuple(score(text, answers)[name] for name in METRICS) == pytest.approx(expected)


def test_answers_are_the_column_or_the_completion_or_the_last_message():
    assert answers_of({"completion": " b", "answers": ["a", "b"]}) == ["a", "b"]
    assert answers_of({"completion": " b", "answers": {"text": ["a"], "answer_start": [0]}}) == ["a"]
    assert answers_of({"completion": " b", "answers": []}) == [" b"]
    talk = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    assert answers_of({"messages": [*talk, {"role": "assistant", "content": "z"}]}) == ["z"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_are_the_likeliest_tokens_whatever_the_batch(kind, tmp_path, monkeypatch):
    task = make_task(TaskConfig(type="text-generation", max_length=32))
    config = llama() | {"model_type": kind}
    if kind == "gpt2":  # positions of its own, which padding on the left would move
        config = {"model_type": kind, "vocab_size": 264, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    spec = ModelConfig(config=config, tokenizer=str(save_bytes_tokenizer(tmp_path)))
    opened = open_model(spec, task, "student.model")
    model, tokenizer = load_model(opened, 0, opened.processor).eval(), opened.processor
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    prompts = task.prompts({"prompt": ["ab", "a longer one", "c"], "completion": ["", "", ""]}, tokenizer)
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 9:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        new = ids[len(prompt) :]
        expected.append(new)
    end = expected[1][4]  # as if the second text ended there, and the others where they have the same token
    model.generation_config.eos_token_id = end
    model.generation_config.update(
        repetition_penalty=1.9, no_repeat_ngram_size=2, min_length=30
    )  # as hubs' models have
    cut = [new[: new.index(end)] if end in new else new for new in expected]
    texts = generate(model, tokenizer, prompts, 9, CPU, "float32")
    assert texts == [tokenizer.decode(new, skip_special_tokens=True) for new in cut]
    assert len(set(texts)) == 3
    assert model.generation_config.repetition_penalty == 1.9, "they are what they were"
    whole = model.generate

    def of_one(input_ids, **given):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(input_ids=input_ids, **given)

    monkeypatch.setattr(model, "generate", of_one)
    assert generate(model, tokenizer, prompts, 9, CPU, "float32") == texts, "also where only one text fits into memory"


def test_a_saved_model_stops_at_the_end_of_an_answer(tmp_path):
    """Also if its base ends texts with another token: otherwise pipelines and servers would write on and on."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
    task = make_task(TaskConfig(type="text-generation", max_length=32))
    spec = ModelConfig(config=llama(eos_token_id=2), tokenizer=str(save_bytes_tokenizer(tmp_path, template, "<user>")))
    opened = open_model(spec, task, "student.model")
    model = load_model(opened, 0, opened.processor)
    model.save_pretrained(tmp_path / "saved")
    published = tmp_path / "saved" / "generation_config.json"
    published.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.5}))  # without do_sample: it cannot be changed
    model.generation_config = GenerationConfig.from_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    note_end_tokens(tmp_path / "saved", model, opened.processor)
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.eos_token_id, saved.temperature) == ([1, 2], 0.5)


def test_a_training_ends_with_texts_of_the_same_test_rows_for_every_model(tmp_path):
    tree = override(capitals_job(tmp_path), {"task.generate": {"rows": 6, "max_new_tokens": 6}})
    config = build(override(tree, {"training.steps": 2, "training.eval_every": 2}))
    prepared, written = prepare(config), []
    for (job,) in teacher_jobs(config, prepared).values():
        list(train(job))
        found = job.result()["generations"][0]
        assert set(found["test"]) == {*prepared.task.metric_names, *METRICS}
        assert set(found["validation"]) == set(prepared.task.metric_names)
        with gzip.open(job.folder / "predictions-test.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        texts = [row for row in rows if "generated" in row]
        assert found["test"]["rouge_l"] == pytest.approx(np.mean([row["rouge_l"] for row in texts]))
        written.append({row["id"]: row["generated"] for row in texts})
    assert written[0].keys() == written[1].keys()
    assert len(written[0]) == 6
    given = override(tree, {"teachers": [{"name": "a", "model": job.result()["model"]}]})
    config = build(given)
    prepared = prepare(config)
    served = served_teacher(config, prepared, config.teachers[0], [], "float32")
    writing = Writing(served, config.task.generate, prepared.raw["test"], 1, 0)
    assert write(writing) == written[1]  # as at the end of its training
    predictor = Predictor(config.teachers[0].model)
    raw = prepared.splits["test"].rows.select(sorted(written[1]))
    asked = Dataset.from_dict({"question": raw["prompt"][:], "other": raw["prompt"][:]})
    ((_, predicted),) = predictor.predict(predictor.inputs(asked, {"prompt": "question"}))
    assert [row["prediction"] for row in predicted] == [written[1][i] for i in sorted(written[1])]
    long = predictor.inputs(Dataset.from_dict({"prompt": ["a", "a" * 60]}), {})
    with pytest.raises(ConfigError) as refused:
        list(predictor.predict(long))
    assert refused.value.key == "task.generate.max_new_tokens"


def refused(tree, *parts):
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    line = str(error.value)
    for part in parts:
        assert part in line, line


def test_settings_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    tree = override(capitals_job(tmp_path), {"task.generate": {"rows": 6, "max_new_tokens": 40}})
    refused(tree, "task.generate.max_new_tokens = 40", "data.test", "the model's 64 positions")
    wide = {key: 128 for key in ("student", "teachers.a", "teachers.b")}
    positions = {f"{key}.model.config.max_position_embeddings": value for key, value in wide.items()}
    prepare(build(override(tree, positions | {"task.max_length": 40})))  # of which prompts can use more than rows do
    text = override(tree, {"data.columns": {"text": "prompt"}})
    refused(text, "task.generate", "without prompts")
