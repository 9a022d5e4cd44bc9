"""Text generation: which tokens are decisions, how long rows are cut, how a model is scored."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import save_bytes_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raykd.common.errors import ConfigError
from raykd.config.schema import DataConfig, TaskConfig
from raykd.data.columns import check_inputs, rename_columns
from raykd.distillation.packed import pack_scores
from raykd.predictions.writing import are_prompts
from raykd.tasks import NO_LABEL, make_task
from raykd.tasks.chat_templates import answer_end
from raykd.tasks.common import RowError

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path_factory.mktemp("bytes"), TEMPLATE))


def task(**settings):
    return make_task(TaskConfig(type="text-generation", **settings))


def trained(encoded, tokenizer):
    """Each row's text, and that of its decisions."""
    golds = [[ids[at + 1] for at in p] for ids, p in zip(encoded["input_ids"], encoded["positions"], strict=True)]
    return [(tokenizer.decode(i), tokenizer.decode(g)) for i, g in zip(encoded["input_ids"], golds, strict=True)]


def test_only_the_completion_and_its_end_are_decisions(tokenizer):
    rows = {"prompt": ["ab", ""], "completion": [" c", "de"]}
    encoded = task().encode(rows, tokenizer, True)
    assert trained(encoded, tokenizer) == [("ab c<end>", " c<end>"), ("de<end>", "e<end>")]
    assert encoded["positions"] == [[1, 2, 3], [0, 1]]
    assert encoded["decisions"] == [3, 2]
    assert encoded["length"] == [5, 3]
    assert encoded["vocabulary"] == [260, 260]
    assert [tokenizer.decode(gold) for gold in encoded["labels"]] == [" c<end>", "e<end>"]
    unlabelled = task().encode(rows, tokenizer, False)
    assert unlabelled["labels"] == [[NO_LABEL] * 3, [NO_LABEL] * 2]
    assert unlabelled["positions"] == encoded["positions"]


def test_all_tokens_but_the_first_are_decisions_if_the_task_says_so(tokenizer):
    encoded = task(train_on="all").encode({"prompt": ["ab"], "completion": ["c"]}, tokenizer, True)
    assert trained(encoded, tokenizer) == [("abc<end>", "bc<end>")]
    assert trained(task().encode({"text": ["abc"]}, tokenizer, True), tokenizer) == [("abc<end>", "bc<end>")]


def test_the_assistants_messages_are_decisions(tokenizer):
    talk = [("user", "hi"), ("assistant", "yo"), ("user", "so"), ("assistant", "no")]
    messages = [{"role": role, "content": content} for role, content in talk]
    encoded = task().encode({"messages": [messages]}, tokenizer, True)
    whole = "<user>hi<end><assistant>yo<end><user>so<end><assistant>no<end>"
    assert trained(encoded, tokenizer) == [(whole, "yo<end>no<end>")]


LINES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
LINES += "{% if add_generation_prompt %}<assistant>{% endif %}"
TALK = [{"role": role, "content": content} for role, content in (("user", "hi"), ("assistant", "yo"))]


def test_an_answer_ends_with_its_special_token_whatever_the_template_writes_after_it(tmp_path):
    """ChatML writes a line break there, and need not have the end-of-text token: no model ever writes the former."""
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, LINES, eos=None))
    again = [*TALK, {"role": "user", "content": "so"}, {"role": "assistant", "content": "no\n"}]
    encoded = task().encode({"messages": [again]}, made, True)
    whole = "<user>hi<end>\n<assistant>yo<end>\n<user>so<end>\n<assistant>no\n<end>\n"
    assert trained(encoded, made) == [(whole, "yo<end>no\n<end>")]
    assert answer_end(made) == made.convert_tokens_to_ids("<end>")
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert answer_end(made) is None
    assert trained(task().encode({"messages": [TALK]}, made, True), made) == [
        ("user: hi\nassistant: yo\n", "assistant: yo\n")
    ]
    made.chat_template = None
    assert answer_end(made) is None


def test_values_for_the_chat_template(tmp_path):
    """As Qwen3's: an answer begins with thoughts, which are in the prompt instead if it is not to think."""
    thinks = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}()\n{% endif %}{{ m.content }}<end>"
    thinks += "{% endfor %}{% if add_generation_prompt %}<assistant>"
    thinks += "{% if enable_thinking is defined and not enable_thinking %}()\n{% endif %}{% endif %}"
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, thinks))
    calm = task(chat_template_kwargs={"enable_thinking": False})
    rows = {"messages": [TALK]}
    assert [trained(one.encode(rows, made, True), made)[0][1] for one in (task(), calm)] == ["()\nyo<end>", "yo<end>"]
    assert made.decode(calm.prompts(rows, made)[0]) == "<user>hi<end><assistant>()\n"
    assert calm.preprocessing() != task().preprocessing()
    with pytest.raises(ConfigError, match="chat_template_kwargs.*no messages, but text"):
        calm.check_rows(Dataset.from_dict({"text": ["a"]}), "train", True)


FORGETS = """{% set last = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.index0 > last.user %}(){% endif %}
{{- m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_each_answer_is_trained_on_as_the_template_writes_it_when_it_is_given(tmp_path):
    """Qwen3's template leaves out the thoughts, here "()", of answers before the last question."""
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, FORGETS))
    roles = ("user", "assistant", "user", "assistant", "tool", "assistant")
    talk = [{"role": role, "content": content} for role, content in zip(roles, "abcdef", strict=True)]
    rows = {"messages": [talk, TALK]}
    encoded = task().encode(rows, made, True)
    before = "<user>a<end><assistant>"
    last = before + "b<end><user>c<end><assistant>()d<end><tool>e<end><assistant>()f<end>"
    answers = [(before + "()b<end>", "()b<end>"), (last, "()d<end>()f<end>")]
    assert trained(encoded, made) == [*answers, ("<user>hi<end><assistant>()yo<end>", "()yo<end>")]
    assert (encoded["source"], encoded["window"], encoded["cut"]) == ([0, 0, 1], [0, 1, 0], [0, 0, 0])
    (note,) = task().notes(Dataset.from_dict(encoded))
    assert note.startswith("1 of 2 conversations are 2 rows, because the chat template writes")
    everything = task(train_on="all").encode(rows, made, True)
    assert [text for text, _ in trained(everything, made)] == [last, "<user>hi<end><assistant>()yo<end>"]
    assert not task(train_on="all").notes(Dataset.from_dict(everything))

    short = task(max_length=int(encoded["positions"][1][4]))  # of the longer text all of the second answer is cut
    cut = short.encode({"messages": [TALK, talk, talk]}, made, True)
    assert (cut["source"], cut["cut"]) == ([0, 1, 1, 2, 2], [0, 4, 0, 4, 0])
    own, truncated = short.notes(Dataset.from_dict(cut))
    assert own.startswith("2 of 3 conversations are 4 rows")
    assert truncated.startswith("2 of 3 rows are longer")
    assert truncated.endswith("8 of 29 tokens are dropped")

    made.chat_template = made.chat_template.replace("%}<assistant>", "%}<assistant>[")
    with pytest.raises(RowError) as refusal:
        task().encode(rows, made, True)
    assert "asks for an answer with 'er>a<end><assistant>[', but then writes 'er>a<end><assistant>()b<end>'" in str(
        refusal.value
    )
    assert trained(task(train_on="all").encode(rows, made, True), made)[0][0] == last, "nothing is asked for"


def test_an_answer_is_compared_and_trained_on_up_to_its_own_end(tmp_path):
    """Phi-3's template writes the end-of-text token after a conversation, which generation never reaches."""
    template = LINES.replace("{% if add", "{% if not add_generation_prompt %}<eos>{% endif %}{% if add")
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, template, eos="<eos>"))
    again = [*TALK, {"role": "user", "content": "so"}, {"role": "assistant", "content": "no"}]
    encoded = task().encode({"messages": [again]}, made, True)
    whole = "<user>hi<end>\n<assistant>yo<end>\n<user>so<end>\n<assistant>no<end>\n<eos>"
    assert trained(encoded, made) == [(whole, "yo<end>no<end>")]


def test_what_a_message_does_not_have_is_not_written(tmp_path):
    """A table's columns unite the arguments of all calls, and a call needs no content."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    template += "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<end>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, template))
    call = {"name": "f", "arguments": {"x": None, "city": "Rome"}}
    talk = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "so so"}]
    encoded = task().encode({"messages": [talk, TALK]}, made, True)
    text = '[{"name": "f", "arguments": {"city": "Rome"}}]<end>'
    assert trained(encoded, made)[0] == (f"<user>hi<end><assistant>{text}", text)
    assert encoded["left_out"] == [True, False], "the template has no place for thoughts"
    (note,) = task().notes(Dataset.from_dict(encoded))
    assert note.startswith("in 1 of 2 rows the chat template leaves out")


def test_tools_are_given_to_the_template(tmp_path):
    template = "{% for tool in tools or [] %}[{{ tool.function.name }}{{ tool.function.get('x', '') }}]{% endfor %}"
    made = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, template + TEMPLATE))
    tools = [{"type": "function", "function": {"name": "f", "x": None}}]
    rows = {"messages": [TALK] * 4, "tools": [tools, json.dumps(tools), [], None]}
    texts = [text for text, _ in trained(task().encode(rows, made, True), made)]
    plain = "<user>hi<end><assistant>yo<end>"
    assert texts == [f"[f]{plain}", f"[f]{plain}", plain, plain]
    assert made.decode(task().prompts(rows, made)[1]) == "[f]<user>hi<end><assistant>"
    made.chat_template = TEMPLATE
    assert task().encode(rows, made, True)["left_out"] == [True, True, False, False]
    with pytest.raises(RowError, match="no JSON") as refusal:
        task().encode({"messages": [TALK, TALK], "tools": [None, "[f]"]}, made, True)
    assert refusal.value.position == 1


def test_a_conversation_goes_on_after_its_last_message(tokenizer, caplog):
    asked = [*TALK, {"role": "user", "content": "so"}]
    (prompt,) = task().prompts({"messages": [asked]}, tokenizer, follow=True)
    assert tokenizer.decode(prompt) == "<user>hi<end><assistant>yo<end><user>so<end><assistant>"
    assert are_prompts(Dataset.from_dict({"messages": [asked, TALK[:1]]}), task())
    assert not are_prompts(Dataset.from_dict({"messages": [TALK, TALK]}), task())
    assert not caplog.records
    assert not are_prompts(Dataset.from_dict({"messages": [TALK, asked]}), task())
    assert [(record.levelname, "row 1 " in record.getMessage()) for record in caplog.records] == [("WARNING", True)]


@pytest.mark.parametrize("kind", ["Metaspace", "Prepend"])
def test_only_the_beginning_of_a_text_gets_a_space(kind):
    """SentencePiece's, as Llama 2 and Mistral 7B have it: "\\n" and "yes" are not "\\n" and " yes"."""
    tokens = ["<end>", "\u2581", "\n", *"abcesy:"]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.add_special_tokens(["<end>"])
    if kind == "Metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    spaced = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    encoded = task().encode({"prompt": ["ab:\n", "ab:", ""], "completion": ["yes", " yes", "yes"]}, spaced, True)
    texts = ["".join(spaced.convert_ids_to_tokens(ids)) for ids in encoded["input_ids"]]
    assert texts == ["\u2581ab:\nyes<end>", "\u2581ab:\u2581yes<end>", "\u2581yes<end>"]
    assert encoded["decisions"] == [4, 5, 4]


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(tmp_path):
    dated = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, "{{ strftime_now('%d %b %Y') }}" + TEMPLATE))
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    encoded = task().encode({"messages": [talk]}, dated, True)
    assert trained(encoded, dated) == [("26 Jul 2024<user>hi<end><assistant>yo<end>", "yo<end>")]
    assert dated.decode(task().prompts({"messages": [talk]}, dated)[0]) == "26 Jul 2024<user>hi<end><assistant>"
    today = dated.apply_chat_template(talk, tokenize=False)
    assert not today.startswith("26 Jul 2024"), "elsewhere it is as it was"
    assert task().encoding(dated)["messages"][0] != task().encoding(None)["messages"][0], "earlier ones had their day"


@pytest.mark.parametrize("length", [8, 9, 14, 15, 16, 60])
def test_windows_predict_each_token_once(tokenizer, length):
    text = "abcdefghijklmnopqrstuvwxyz012"[: length - 1]
    encoded = task(max_length=8).encode({"text": [text]}, tokenizer, True)
    assert "".join(gold for _, gold in trained(encoded, tokenizer)) == (text + "<end>")[1:]
    assert max(encoded["length"]) <= 8
    assert encoded["window"] == list(range(len(encoded["window"])))
    assert encoded["cut"] == [0] * len(encoded["window"])


def test_truncation_and_splitting_say_how_much(tokenizer):
    rows = {"text": ["abcdefghijkl", "abc"]}
    cut = task(max_length=8, long="truncate")
    encoded = cut.encode(rows, tokenizer, True)
    assert [text for text, _ in trained(encoded, tokenizer)] == ["abcdefgh", "abc<end>"]
    (note,) = cut.notes(Dataset.from_dict(encoded))
    assert note == "1 of 2 rows are longer than task.max_length = 8 tokens and truncated: 5 of 15 tokens are dropped"
    (note,) = task(max_length=8).notes(Dataset.from_dict(task(max_length=8).encode(rows, tokenizer, True)))
    assert note == "rows longer than task.max_length = 8 tokens are split into windows, which are 1 more than the rows"


def test_rows_that_are_too_long_can_be_left_out(tokenizer):
    rows = {"prompt": ["ab", "ab"], "completion": ["abcde", "abcdef"]}
    drop = task(max_length=8, long="drop")
    assert drop.long_rows(rows, tokenizer) == [False, True], "with its end it has nine tokens"
    assert drop.identity() == task(max_length=8).identity(), "the other rows are the same"
    answer = {"role": "assistant", "content": "yo yo"}
    asked = {"messages": [[TALK[0], answer, {"role": "user", "content": "a question without an answer"}]]}
    assert drop.long_rows(asked, tokenizer) == [True]
    assert task(max_length=20, long="drop").long_rows(asked, tokenizer) == [False], "its end is not trained on"
    (text,) = drop.encode({"text": ["abcdefghijkl"]}, tokenizer, True)["window"][-1:]
    assert text == 1, "as without it, where every row is read: raykd predict"


def test_a_batch_reads_its_decisions_and_cuts_the_padded_vocabulary(tokenizer):
    encoded = task().encode({"prompt": ["ab", "a"], "completion": ["c", "bcd"]}, tokenizer, True)
    batch = task().collate(encoded, tokenizer)
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.inputs["positions"].tolist() == [[1, 2, 0, 0], [0, 1, 2, 3]]
    assert (batch.labels >= 0).tolist() == [[True, True, False, False], [True] * 4]
    assert batch.mask.shape == (2, 4, 260)
    assert batch.mask.any(-1).tolist() == (batch.labels >= 0).tolist()
    assert batch.mask.untyped_storage().nbytes() == 8  # a view
    assert batch.to(torch.device("cpu")).mask.untyped_storage().nbytes() == 8


def test_scores_are_those_of_all_tokens_together(tokenizer):
    rows = {"prompt": ["ab", "xy", "a"], "completion": ["c", "defghijk", "mnop" * 30]}
    made = task(max_length=16, long="split")
    encoded = made.encode(rows, tokenizer, True)
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(h, 260)) * 3 for h in encoded["decisions"]]
    for row, gold in zip(logits, encoded["labels"], strict=True):
        row[np.arange(len(gold)), gold] += rng.integers(0, 2, len(gold)) * 20  # about half of them are right
    gold = torch.tensor(np.concatenate(encoded["labels"]))
    whole = torch.tensor(np.concatenate(logits))
    raw, table = Dataset.from_dict(rows), Dataset.from_dict(encoded).rename_column("source", "example")
    packed = [
        pack_scores(torch.tensor(row), torch.tensor(true)).numpy()
        for row, true in zip(logits, encoded["labels"], strict=True)
    ]
    evaluation = made.evaluate(made.summarize(packed, encoded), table, raw)
    nll = torch.nn.functional.cross_entropy(whole, gold).item()
    right = (whole.argmax(1) == gold).double().mean().item()
    assert evaluation.metrics == pytest.approx({"nll": nll, "perplexity": np.exp(nll), "accuracy": right}, rel=1e-5)
    assert 0.2 < right < 0.8
    assert evaluation.scores.mean() == pytest.approx(nll)
    assert len(evaluation.scores) == len(evaluation.predictions) == 3
    found = made.predictions(packed, table, raw, {})
    assert [row["tokens"] for row in found] == [2, 9, 121]
    assert sum(row["prediction"] * row["tokens"] for row in found) == pytest.approx(nll * len(gold), rel=1e-5)


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("columns", "named", "used"),
    [
        ({"prompt": ["a"], "completion": ["b"], "messages": [CHAT], "text": ["c"], "id": [1]}, {}, {"messages"}),
        ({"prompt": ["a"], "messages": [CHAT]}, {}, {"messages"}),
        ({"prompt": ["a"], "completion": ["b"], "text": ["c"]}, {}, {"prompt", "completion"}),
        ({"question": ["a"], "completion": ["b"]}, {"prompt": "question"}, {"prompt", "completion"}),
        ({"messages": [CHAT], "story": ["c"]}, {"text": "story"}, {"text"}),
    ],
)
def test_the_data_has_one_of_three_kinds_of_rows(columns, named, used):
    data = DataConfig(source="x", columns=named)
    rows = rename_columns(Dataset.from_dict(columns), data, task(), "train", labelled=True)
    assert set(rows.column_names) == used
    check_inputs(rows, data, task(), "train")


def refused(call, *parts):
    with pytest.raises((ConfigError, RowError)) as error:
        call()
    line = str(error.value)
    for part in parts:
        assert part in line, line
        line = line[line.index(part) + len(part) :]


def test_rows_that_cannot_be_used_are_refused(tokenizer, tmp_path):
    data = DataConfig(source="x")
    none = Dataset.from_dict({"body": ["a"]})
    refused(
        lambda: rename_columns(none, data, task(), "train", labelled=True),
        "data.columns",
        "messages",
        "prompt",
        "text",
        "body",
    )
    half = Dataset.from_dict({"prompt": ["a"], "body": ["b"]})
    other = DataConfig(source="x", columns={"prompt": "prompt"})
    refused(
        lambda: rename_columns(half, other, task(), "train", labelled=True), "data.columns.completion", "prompt, body"
    )
    texts = Dataset.from_dict({"messages": ["a"]})
    refused(lambda: check_inputs(texts, data, task(), "train"), "data.columns.messages", "role", "content")
    empty = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", ""]})
    refused(lambda: task().check_rows(empty, "test", True), "data.test", "row 1", "completion is empty")
    asked = Dataset.from_dict({"messages": [CHAT, CHAT[:1]]})
    refused(lambda: task().check_rows(asked, "train", True), "row 1", "assistant")
    plain, told = Dataset.from_dict({"text": ["a"]}), task(train_on="completion")
    refused(lambda: told.check_rows(plain, "train", True), "task.train_on", "completion")
    bare = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path))
    refused(lambda: task().encode({"messages": [CHAT]}, bare, True), "no chat template", "prompt and completion")
    long = {"prompt": ["a" * 20], "completion": ["b"]}
    refused(
        lambda: task(max_length=16).encode(long, tokenizer, True), "first 16 tokens", "it has 22", "task.max_length"
    )
    single = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path, eos=None))
    refused(lambda: task().encode({"text": ["a"]}, single, True), "single token")


def test_other_tasks_do_not_take_its_settings():
    with pytest.raises(ValueError, match="train_on"):
        TaskConfig(type="text-classification", train_on="all")
