"""Question answering: windows, labels, masks, padding, decoding and the no-answer threshold."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from scored import evaluate
from squad_scores import squad_v2_scores
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raykd.common.errors import ConfigError
from raykd.common.hashing import digest
from raykd.tasks.common import Batch
from raykd.tasks.question_answering import QuestionAnswering
from raykd.tasks.spans import CHUNK, read_spans

WORDS = [f"w{i}" for i in range(40)]


def bert_like(**options):
    """WordPiece over w0, w1, ... as whole words, digits and letters: [CLS] q [SEP] context [SEP]."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS, *letters, *(f"##{c}" for c in letters), *"?.,-"]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"model_input_names": inputs} | names | options))


def roberta_like(trim_offsets=True, vocab_size=264):
    """Byte-level BPE: <s> q </s></s> context </s>, without token types; spaces belong to tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["who was the duke of Normandy", "the duke was Richard"], trainer)
    ends = ("</s>", 2), ("<s>", 0)
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def qa(max_length=16, stride=4, max_answer_length=30):
    return QuestionAnswering(SimpleNamespace(max_length=max_length, stride=stride, max_answer_length=max_answer_length))


def answer(context, *texts):
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


def rows(*triples, ids=None):
    """(question, context, answers) triples to columns."""
    question, context, answers = map(list, zip(*triples, strict=True))
    return {
        "id": ids or [f"q{i}" for i in range(len(question))],
        "question": question,
        "context": context,
        "answers": answers,
    }


def encode(task, columns, tokenizer, labelled=True):
    """As raykd.data.loading does it: `source` becomes `example`."""
    encoded = task.encode(columns, tokenizer, labelled)
    encoded["example"] = encoded.pop("source")
    return Dataset.from_dict(encoded), Dataset.from_dict(columns)


def gold_text(window, context):
    """The text that a window's labels point to."""
    first, last = (position - window["context_start"] for position in window["labels"])
    return context[window["token_starts"][first] : window["token_ends"][last]]


CONTEXT = " ".join(WORDS[:20])  # 20 tokens; "w12" begins at 2 * 12 + 10 + 2 = ... see `answer`


def test_one_window():
    task, context = qa(), "w5 w6, W7!"
    encoded = task.encode(rows(("w1 w2?", context, answer(context, "W7"))), bert_like(), labelled=True)
    # [CLS] w1 w2 ? [SEP] w5 w6 , w7 ! [SEP]; "!" is unknown to this vocabulary
    tokenizer = bert_like()
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]", "w1", "w2", "?", "[SEP]", "w5", "w6", ",", "w7", "[UNK]", "[SEP]"
    ]  # fmt: skip
    assert encoded["token_type_ids"] == [[0] * 5 + [1] * 6]
    assert "attention_mask" not in encoded
    assert (encoded["length"], encoded["window"], encoded["source"]) == ([11], [0], [0])
    assert (encoded["context_start"], encoded["context_end"]) == ([5], [10])
    assert encoded["token_starts"] == [[0, 3, 5, 7, 9]]
    assert encoded["token_ends"] == [[2, 5, 6, 9, 10]]
    assert encoded["labels"] == [[8, 8]]


def test_answers_of_several_tokens_end_on_their_last():
    context = "w5 w6 w7 w8"
    encoded = qa().encode(rows(("w1", context, answer(context, "w6 w7 w8"))), bert_like(), labelled=True)
    assert encoded["labels"] == [[4, 6]]  # [CLS] w1 [SEP] w5 w6 w7 w8


def test_windows_overlap_by_the_stride_and_hold_the_answer_only_where_it_is_whole():
    # 16 positions less [CLS] w1 [SEP] [SEP] leave 12 tokens of context; steps of 12 - 4 = 8 tokens.
    def labels(*texts):
        context = CONTEXT
        columns = rows(("w1", context, answer(context, *texts) if texts else answer(context)))
        return qa().encode(columns, bert_like(), labelled=True)

    encoded = labels("w15")
    assert encoded["window"] == [0, 1]
    assert encoded["source"] == [0, 0]
    assert encoded["length"] == [16, 16]
    assert [len(starts) for starts in encoded["token_starts"]] == [12, 12]
    assert encoded["token_starts"][0][8:] == encoded["token_starts"][1][:4]  # w8 to w11 are in both
    assert encoded["labels"] == [[0, 0], [3 + 7, 3 + 7]]  # the second window begins with w8
    assert labels("w3")["labels"] == [[6, 6], [0, 0]]
    assert labels("w9 w10")["labels"] == [[12, 13], [4, 5]]  # in the overlap: in both
    assert labels("w8 w9 w10 w11")["labels"] == [[11, 14], [3, 6]]  # all of the overlap
    assert labels("w10 w11 w12")["labels"] == [[0, 0], [5, 7]]  # cut off by the first one's end
    assert labels("w7 w8")["labels"] == [[10, 11], [0, 0]]  # cut off by the second one's start
    assert labels("w7 w8 w9 w10 w11 w12")["labels"] == [[0, 0], [0, 0]]  # longer than the overlap
    assert labels("w0")["labels"] == [[3, 3], [0, 0]]
    assert labels("w19")["labels"] == [[0, 0], [14, 14]]
    assert labels()["labels"] == [[0, 0], [0, 0]]  # unanswerable


def test_a_word_split_by_the_windows_edge_is_not_whole():
    # Letters that spell one word, one token each: w0 z z z z z z | z z z z, 7 tokens a window.
    context = "w0 zzzzzzzzzz"
    task = qa(max_length=11, stride=2)
    encoded = task.encode(rows(("w1", context, answer(context, "zzzz"))), bert_like(), labelled=True)
    assert encoded["token_ends"][0] == [2, 4, 5, 6, 7, 8, 9]
    assert encoded["labels"] == [[4, 7], [0, 0]]
    encoded = task.encode(rows(("w1", context, answer(context, "zzzzzzzzzz"))), bert_like(), labelled=True)
    assert encoded["labels"] == [[0, 0], [0, 0]]


def test_answers_can_start_and_end_inside_a_word():
    context = "w0 zzzzzzzzzz"
    answers = {"text": ["zzz"], "answer_start": [5]}
    encoded = qa(max_length=20).encode(rows(("w1", context, answers)), bert_like(), labelled=True)
    assert encoded["labels"] == [[6, 8]]  # [CLS] w1 [SEP] w0 z z z z ...: the third z is at character 5


def test_characters_that_the_tokenizer_drops():
    drop = "\u200b"  # zero-width space: no token, and not stripped as space either
    context = f"{drop}w5 {drop} w6{drop}"
    for text, labels in ((f"{drop}w5", [3, 3]), (f"w6{drop}", [4, 4]), (drop, [0, 0])):
        answers = {"text": [text], "answer_start": [context.index(text, 1 if text == drop else 0)]}
        encoded = qa().encode(rows(("w1", context, answers)), bert_like(), labelled=True)
        assert encoded["token_starts"] == [[1, 6]]
        assert encoded["labels"] == [labels]


def test_windows_count_within_each_row_and_rows_keep_their_source():
    columns = rows(("w1", "w2", answer("w2", "w2")), ("w1", CONTEXT, answer("")), ("w1", "w3", answer("")))
    encoded = qa().encode(columns, bert_like(), labelled=True)
    assert encoded["window"] == [0, 0, 1, 0]
    assert encoded["source"] == [0, 1, 1, 2]
    assert {len(column) for column in encoded.values()} == {4}


def test_hidden_labels_are_no_labels():
    columns = rows(("w1", CONTEXT, answer(CONTEXT, "w3")), ("w1", CONTEXT, answer("")))
    hidden = qa().encode(columns, bert_like(), labelled=False)
    assert hidden["labels"] == [[-100, -100]] * 4
    del columns["answers"]
    assert qa().encode(columns, bert_like(), labelled=False) == hidden


def test_the_first_answer_trains():
    context = "w5 w6 w7 w8"
    encoded = qa().encode(rows(("w1", context, answer(context, "w7", "w5"))), bert_like(), labelled=True)
    assert encoded["labels"] == [[5, 5]]


def test_space_around_questions_and_answers_does_not_count():
    tokenizer, context = roberta_like(), "the duke was Richard"
    answers = {"text": [" duke "], "answer_start": [3]}
    spaced = qa(40).encode(rows(("   who was", context, answers)), tokenizer, labelled=True)
    plain = qa(40).encode(rows(("who was", context, answer(context, "duke"))), tokenizer, labelled=True)
    assert spaced == plain
    window = {name: column[0] for name, column in plain.items()}
    assert gold_text(window, context) == "duke"
    # Also at the very start and end of a context that is itself padded with space.
    context = " w5 w6 "
    for text, start in ((" w5", 0), ("w6 ", 4)):
        answers = {"text": [text], "answer_start": [start]}
        encoded = qa().encode(rows(("w1", context, answers)), bert_like(), labelled=True)
        assert encoded["labels"][0] == [3 + start // 4, 3 + start // 4]


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_roberta_like_tokenizer(trim_offsets):
    tokenizer, context = roberta_like(trim_offsets), "Été: the duke of Normandy was Richard"
    task = qa(max_length=30, stride=8)
    answers = [answer(context, text) for text in ("duke of", "Été")]
    encoded, raw = encode(task, rows(*(("who was", context, a) for a in answers)), tokenizer)
    assert "token_type_ids" not in encoded.column_names
    assert max(encoded["window"]) > 0
    whole = 0
    for window in encoded:
        assert window["input_ids"][0] == tokenizer.cls_token_id
        assert window["input_ids"][window["context_start"] - 2 : window["context_start"]] == [2, 2]
        assert window["context_end"] == window["length"] - 1
        if window["labels"] != [0, 0]:
            whole += 1
            assert gold_text(window, context).strip() == raw[window["example"]]["answers"]["text"][0]
    assert whole >= 2
    batch = task.collate(encoded[:], tokenizer)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.inputs["input_ids"][batch.inputs["attention_mask"] == 0].unique().tolist() in ([], [1])
    logits = certain(encoded)
    predictions = evaluate(task, logits, encoded, raw).predictions
    assert [p["prediction"] for p in predictions] == ["duke of", "Été"]


def test_answers_are_text_without_the_space_that_belongs_to_a_token():
    tokenizer, context = roberta_like(trim_offsets=False, vocab_size=300), "the duke was Richard"
    encoded, raw = encode(qa(), rows(("who", context, answer(context, "duke"))), tokenizer)
    assert gold_text(encoded[0], context) == " duke"
    assert evaluate(qa(), certain(encoded), encoded, raw).predictions[0]["prediction"] == "duke"


def test_questions_that_leave_no_room_are_refused_by_name():
    long = " ".join(WORDS[:8])  # 16 - 3 specials - 8 leaves 5, one more than the stride
    encoded = qa().encode(rows((long, CONTEXT, answer(""))), bert_like(), labelled=True)
    assert len(encoded["input_ids"]) == 16  # each has one new token after the first five
    assert {tuple(ids[:10]) for ids in encoded["input_ids"]} == {(1, *range(4, 12), 2)}  # a whole question
    with pytest.raises(ConfigError, match=r"task\.max_length = 16: question 'q1' has 9 .* task\.stride"):
        qa().encode(rows(("w1", "w2", answer("")), (long + " w9", CONTEXT, answer(""))), bert_like(), True)


def test_an_empty_context_is_one_window_of_cls_alone():
    columns = rows(("w1", "", answer("")), ("w1", "  ", answer("")), ("w1", "w2", answer("w2", "w2")))
    encoded, raw = encode(qa(), columns, bert_like())
    assert encoded["labels"][:] == [[0, 0], [0, 0], [3, 3]]
    assert qa().collate(encoded[:], bert_like()).mask.sum(-1).tolist() == [[1, 1], [1, 1], [2, 2]]
    evaluation = evaluate(qa(), certain(encoded), encoded, raw)
    assert [p["prediction"] for p in evaluation.predictions] == ["", "", "w2"]
    assert evaluation.predictions[0]["no_answer_probability"] == 1.0
    alone, raw = encode(qa(), rows(("w1", "", answer(""))), bert_like())
    assert evaluate(qa(), [np.zeros((2, 4))], alone, raw).metrics["f1"] == 100.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"truncation_side": "left"}, "on the left"),
        ({"cls_token": None}, "no CLS token"),
        ({"pad_token": None}, "no padding token"),
        ({"cls_token": "[SEP]"}, "CLS token first"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        qa().encode(rows(("w1", "w2", answer(""))), bert_like(**options), labelled=True)


def test_slow_tokenizers_are_refused():
    with pytest.raises(ConfigError, match="not a fast tokenizer"):
        qa().encode(rows(("w1", "w2", answer(""))), SimpleNamespace(name_or_path="slow"), labelled=True)


def test_collate_pads_to_the_longest_and_masks():
    tokenizer = bert_like()
    tokenizer._pad_token_type_id = 7  # as XLNet has 3
    assert tokenizer.pad_token_id == 3
    columns = rows(("w1", "w5 w6", answer("w5 w6", "w6")), ("w1 w2", "w5 w6 w7", answer("")))
    encoded, _ = encode(qa(), columns, tokenizer)
    for view in (encoded, encoded.with_format("numpy")):
        batch = qa().collate(view[:], tokenizer)
        assert batch.inputs["input_ids"].tolist()[0][-2:] == [3, 3]
        assert batch.inputs["input_ids"].tolist()[1] == encoded[1]["input_ids"]
        assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 7, 7], [0] * 4 + [1] * 4]
        assert batch.inputs["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
        assert {value.dtype for value in batch.inputs.values()} == {torch.int64}
        assert batch.labels.tolist() == [[4, 4], [0, 0]]
        assert batch.labels.dtype == torch.int64
        assert batch.mask.dtype == torch.bool
        starts = [[1, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 1, 0]]
        assert batch.mask.int().tolist() == [[row, row] for row in starts]


def test_collate_needs_no_other_columns_than_the_task_names():
    encoded, _ = encode(qa(), rows(("w1", CONTEXT, answer(CONTEXT, "w3"))), bert_like())
    task = qa()
    fed = encoded.select_columns([*task.model_inputs, *task.collate_columns, "labels", "length"])
    all_columns, few = (task.collate(view[:], bert_like()) for view in (encoded, fed))
    assert torch.equal(all_columns.mask, few.mask)
    assert few.mask.shape[-1] == few.inputs["input_ids"].shape[-1] == max(encoded["length"])
    assert task.shapes(fed[:]).tolist() == [[2, length] for length in encoded["length"]]  # C is the row's own length


def test_a_question_is_identified_by_its_text_and_context():
    assert qa().identity_columns == ("question", "context")  # another id is no other question


def test_decisions_are_start_and_end():
    start, end = torch.rand(3, 5), torch.rand(3, 5)
    batch = Batch({}, torch.zeros(3, 2, dtype=torch.int64))
    stacked = qa().decisions(SimpleNamespace(start_logits=start, end_logits=end), batch)
    assert stacked.shape == (3, 2, 5)
    assert torch.equal(stacked[:, 0], start)
    assert torch.equal(stacked[:, 1], end)


# Evaluation


def certain(encoded, height=8.0):
    """Logits that are sure of the labels."""
    logits = [np.zeros((2, length)) for length in encoded["length"]]
    for window, (start, end) in zip(logits, encoded["labels"], strict=True):
        window[0, start] = window[1, end] = height
    return logits


def spans_by_loops(logits, start, end, limit):
    """The definition: every span of at most `limit` tokens, of equal margins the first by start, then end."""
    found = []
    for window, a, b in zip(logits, start, end, strict=True):
        spans = [
            (window[0, i] + window[1, j] - window[0, 0] - window[1, 0], -(i - a), -(j - a))
            for i in range(a, b)
            for j in range(i, min(b, i + limit))
        ]
        margin, first, last = max(spans, default=(-np.inf, 0, 0))
        found.append((margin, -first, -last))
    return [np.array(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("limit", [1, 3, 30])
def test_spans_equal_their_definition(limit):
    rng = np.random.default_rng(limit)
    count = CHUNK + 5  # more than one chunk
    start = rng.integers(2, 5, count)
    end = start + rng.integers(0, 12, count)
    # Small integers: many ties; float16, as stored logits are.
    logits = [rng.integers(-3, 3, (2, e + 2)).astype(np.float16) for e in end]
    last_tokens = np.where(end > start, end - 1, 0)
    labels = np.stack([rng.choice([-100, 0, token], 2) for token in last_tokens])
    spans = read_spans(logits, start, end, labels, limit)
    margin, first, last = spans_by_loops(logits, start, end, limit)
    np.testing.assert_array_equal(spans.margin, margin)
    np.testing.assert_array_equal(spans.first, first)
    np.testing.assert_array_equal(spans.last, last)
    for window, s, e, label, nll in zip(logits, start, end, labels, spans.nll, strict=True):
        for side in (0, 1):
            if label[side] == -100:
                assert np.isnan(nll[side])
            else:
                allowed = [0, *range(s, e)]
                exp = np.exp(window[side, allowed].astype(float))
                assert nll[side] == pytest.approx(-np.log(exp[allowed.index(label[side])] / exp.sum()))


def test_the_answer_is_the_span_of_the_largest_margin_over_all_windows():
    task, tokenizer = qa(), bert_like()
    encoded, raw = encode(task, rows(("w1", CONTEXT, answer(CONTEXT, "w15", "w14 w15"))), tokenizer)
    logits = [np.zeros((2, 16)), np.zeros((2, 16))]
    logits[0][0, 4], logits[0][1, 4] = 50.0, 50.0  # w1, high scores ...
    logits[0][:, 0] = 49.0  # ... and a margin of 2
    logits[1][0, 10], logits[1][1, 10] = 2.0, 2.0  # w15, low scores and a margin of 4
    (prediction,) = evaluate(task, logits, encoded, raw).predictions
    assert prediction["best_answer"] == "w15"
    assert prediction["no_answer_probability"] == pytest.approx(1 / (1 + np.exp(4.0)))

    # A constant per window and decision changes nothing: that is all that stored logits promise.
    shifted = [window + np.array([[3.0], [-40.0]]) * (i + 1) for i, window in enumerate(logits)]
    assert evaluate(task, shifted, encoded, raw).predictions == [prediction]
    as_stored = [(window - window.max(1, keepdims=True)).astype(np.float16) for window in logits]
    assert evaluate(task, as_stored, encoded, raw).predictions == [prediction]

    # Of windows that agree in their margin the first one counts.
    logits[1][0, 10] = 0.0
    assert evaluate(task, logits, encoded, raw).predictions[0]["best_answer"] == "w1"


def test_spans_are_in_order_short_enough_and_inside_the_context():
    task, tokenizer = qa(max_answer_length=3), bert_like()
    encoded, raw = encode(task, rows(("w1", "w5 w6 w7 w8 w9", answer(""))), tokenizer)
    window = np.full((2, 9), -5.0)  # [CLS] w1 [SEP] w5 w6 w7 w8 w9 [SEP]

    def best(*ones):
        logits = window.copy()
        for side, position, value in ones:
            logits[side, position] = value
        return evaluate(task, [logits], encoded, raw).predictions[0]["best_answer"]

    assert best((0, 4, 9), (1, 6, 9)) == "w6 w7 w8"  # three tokens
    assert best((0, 4, 9), (1, 7, 9), (1, 5, 4)) == "w6 w7"  # four would be better, and are too many
    assert best((0, 6, 9), (1, 4, 9), (1, 7, 4)) == "w8 w9"  # the end may not be before the start
    assert best((0, 1, 99), (1, 8, 99), (0, 3, 1), (1, 3, 1)) == "w5"  # question and [SEP] are not allowed
    assert best((0, 0, 99), (1, 0, 99), (0, 3, 1), (1, 3, 1)) == "w5"  # the best span that is one


def test_masked_logits_are_never_read():
    task, tokenizer = qa(), bert_like()
    columns = rows(("w1", CONTEXT, answer(CONTEXT, "w3")), ("w1 w2", "w5 w6", answer("")))
    encoded, raw = encode(task, columns, tokenizer)
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(2, length)) - 20 for length in encoded["length"]]
    mask = task.collate(encoded[:], tokenizer).mask.numpy()
    expected = evaluate(task, logits, encoded, raw)
    for batch in (1, 2, len(logits)):  # a window's numbers do not depend on its batch
        assert evaluate(task, logits, encoded, raw, batch=batch).metrics == expected.metrics
    for masked in (0.0, np.nan):
        other = [np.where(m[:, : z.shape[1]], z, masked) for z, m in zip(logits, mask, strict=True)]
        got = evaluate(task, other, encoded, raw)
        assert got.metrics == expected.metrics
        assert got.predictions == expected.predictions


def four_questions():
    """Answerable, answerable, unanswerable, unanswerable; each one window: [CLS] w1 [SEP] w5 w6 w7 [SEP]."""
    context = "w5 w6 w7"
    answers = [answer(context, "w5", "w5 w6"), answer(context, "w6"), answer(""), answer("")]
    encoded, raw = encode(qa(), rows(*(("w1", context, a) for a in answers)), bert_like())
    return encoded, raw


def with_margins(*spans):
    """(first, last, margin) a question, positions in the window."""
    logits = []
    for first, last, margin in spans:
        window = np.full((2, 7), -30.0)
        window[:, 0] = 0.0
        window[0, first], window[1, last] = margin, 0.0
        logits.append(window)
    return logits


def test_the_threshold_is_chosen_on_validation_and_used_on_test():
    encoded, raw = four_questions()
    chosen = evaluate(qa(), with_margins((3, 3, 5.0), (4, 4, 2.0), (5, 5, 1.0), (3, 3, -4.0)), encoded, raw)
    assert list(chosen.calibration) == ["no_answer_threshold"]
    threshold = chosen.calibration["no_answer_threshold"]
    assert threshold == chosen.metrics["best_f1_thresh"] == chosen.metrics["no_answer_threshold"]
    assert threshold == pytest.approx(1 / (1 + np.exp(2.0)))  # after the second question
    assert chosen.metrics["exact"] == chosen.metrics["f1"] == chosen.metrics["best_f1"] == 100.0
    assert [p["prediction"] for p in chosen.predictions] == ["w5", "w6", "", ""]
    assert [p["best_answer"] for p in chosen.predictions] == ["w5", "w6", "w7", "w5"]

    # On test its own best threshold (after 0.5) is reported, but not used.
    margins = with_margins((3, 3, 5.0), (4, 4, 0.5), (5, 5, -1.0), (3, 3, -4.0))
    tested = evaluate(qa(), margins, encoded, raw, chosen.calibration)
    assert tested.calibration == chosen.calibration
    assert tested.metrics["no_answer_threshold"] == threshold
    assert [p["prediction"] for p in tested.predictions] == ["w5", "", "", ""]
    assert tested.metrics["f1"] == 75.0
    assert tested.metrics["best_f1"] == 100.0
    assert tested.metrics["best_f1_thresh"] == pytest.approx(1 / (1 + np.exp(0.5)))
    assert tested.scores.tolist() == [100.0, 0.0, 100.0, 100.0]


def test_all_answers_score_and_figures_are_the_official_ones():
    encoded, raw = four_questions()
    logits = with_margins((3, 4, 5.0), (3, 4, 2.0), (5, 5, 1.0), (3, 3, -4.0))
    evaluation = evaluate(qa(), logits, encoded, raw, {"no_answer_threshold": 0.2})
    # "w5 w6" is the second gold answer of the first; of the second it is half right: F1 2/3.
    assert evaluation.scores.tolist() == pytest.approx([100.0, 200 / 3, 100.0, 100.0])
    assert evaluation.metrics["f1"] == 100.0 * sum([1.0, 2 / 3, 1.0, 1.0]) / 4
    predictions = {p["id"]: p["best_answer"] for p in evaluation.predictions}
    probabilities = {p["id"]: p["no_answer_probability"] for p in evaluation.predictions}
    official = squad_v2_scores(predictions, raw, probabilities, 0.2)
    assert official.items() <= evaluation.metrics.items()
    assert evaluation.metrics.keys() - official.keys() == {"no_answer_threshold", "nll"}
    # The threshold is F1's: by exact match the second prediction would be worth nothing.
    threshold = evaluate(qa(), logits, encoded, raw).calibration["no_answer_threshold"]
    assert threshold == probabilities["q1"] != official["best_exact_thresh"] == probabilities["q0"]
    first = json.loads(json.dumps(evaluation.predictions))[0]
    assert first == {
        "id": "q0", "prediction": "w5 w6", "no_answer_probability": probabilities["q0"],
        "best_answer": "w5 w6", "answers": ["w5", "w5 w6"], "f1": 1.0, "score": 100.0,
        "context": digest(raw["context"][0].encode()).hex()[:12],
    }  # fmt: skip
    assert [p["score"] for p in evaluation.predictions] == evaluation.scores.tolist()


def test_predictions_tell_which_questions_share_a_context():
    encoded, raw = encode(
        qa(), rows(("w1", "w5 w6", answer("")), ("w2", "w7", answer("")), ("w3", "w5 w6", answer(""))), bert_like()
    )
    logits = [np.zeros((2, n)) for n in encoded["length"]]
    first, other, again = (p["context"] for p in evaluate(qa(), logits, encoded, raw).predictions)
    assert first == again != other


def test_nll_is_the_mean_over_allowed_positions_and_labelled_decisions():
    context = "w5 w6 w7"
    columns = rows(("w1", context, answer(context, "w6")), ("w1", context, answer("")))
    encoded, raw = encode(qa(), columns, bert_like())
    logits = [np.full((2, 7), 100.0), np.full((2, 7), 100.0)]  # as good as forbidden positions can look
    for window in logits:
        window[:, [0, 3, 4, 5]] = 0.0
    logits[0][0, 4] = np.log(3.0)  # start: 3 of 6
    assert evaluate(qa(), logits, encoded, raw).metrics["nll"] == pytest.approx(
        (np.log(6 / 3) + np.log(4) + np.log(4) + np.log(4)) / 4
    )
    # The decisions of a row without a label do not count ...
    some = encoded.map(lambda row: {"labels": [4, 4] if row["example"] == 0 else [-100, -100]})
    nll = evaluate(qa(), logits, some, raw).metrics["nll"]
    assert nll == pytest.approx((np.log(2) + np.log(4)) / 2)
    # ... and logits that are not a number show.
    logits[0][0, 4] = np.nan
    assert np.isnan(evaluate(qa(), logits, encoded, raw).metrics["nll"])


def test_rows_without_labels_cannot_be_scored():
    encoded, raw = encode(qa(), rows(("w1", "w2", answer(""))), bert_like(), labelled=False)
    with pytest.raises(ValueError, match="without labels"):
        evaluate(qa(), [np.zeros((2, 5))], encoded, raw)


def test_scores_keep_the_raw_order_when_ids_do_not():
    context = "w5 w6 w7"
    triples = [("w1", context, answer(context, word)) for word in ("w7", "w5", "w6")]
    columns = rows(*triples, ids=["z", "a", "a"])
    encoded, raw = encode(qa(), columns, bert_like())
    evaluation = evaluate(qa(), with_margins((5, 5, 9.0), (4, 4, 9.0), (4, 4, 9.0)), encoded, raw)
    assert evaluation.scores.tolist() == [100.0, 0.0, 100.0]
    assert evaluation.metrics["total"] == 3
    assert evaluation.scores.mean() == pytest.approx(evaluation.metrics["f1"])


def test_selected_rows_are_scored_as_they_stand():
    """`select` leaves the stored columns in place behind an index, which must not be overlooked."""
    encoded, raw = four_questions()
    logits = with_margins((4, 4, 5.0), (3, 3, 2.0))
    evaluation = evaluate(qa(), logits, encoded.select([1, 0]), raw.select([0, 1]))
    assert evaluation.metrics["exact"] == 100.0


# Rows and settings


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": ["w6"], "answer_start": [0]}, "'w6' is not at character 0"),
        ({"text": ["w5", "w6"], "answer_start": [0, 99]}, "'w6' is not at character 99"),
        ({"text": ["w6"], "answer_start": [-2]}, "at -2 is not a text at a character"),
        ({"text": [""], "answer_start": [0]}, "one of its answers is empty"),
        ({"text": ["w6"], "answer_start": [None]}, "at None"),
        ({"text": ["w6"], "answer_start": []}, "of one length"),
        ({"text": ["w6"], "answer_start": None}, "of one length"),
        (None, r"1 row, .* without answers\. .*data\.transfer"),
    ],
)
def test_answers_that_are_not_where_they_should_be(answers, reason):
    context = "w5 w6"
    good = ("w1", context, answer(context, "w6"))
    raw = Dataset.from_dict(rows(good, ("w1", context, answers), ids=["fine", "broken"]))
    with pytest.raises(ConfigError, match=reason) as caught:
        qa().check_rows(raw, "train", labelled=True)
    assert (caught.value.key, caught.value.value) == ("data.train", "broken")
    qa().check_rows(raw.remove_columns("answers"), "transfer", labelled=False)


@pytest.mark.parametrize(("encoding", "size"), [("utf-16-le", 2), ("utf-8", 1)])
def test_starts_that_other_programs_count_are_recognised(encoding, size):
    """Annotation tools in browsers count an emoji as two characters. All rows are counted, with the way to convert."""
    context = "w5 \U0001f680\U0001f680 w6 w7"
    start = len(context[: context.index("w7")].encode(encoding)) // size
    there = {"text": ["w7"], "answer_start": [start]}
    asked = [("w1", "w7 w8", answer("w7 w8", "w7")), ("w1", context, there), ("w2", context, there)]
    raw = Dataset.from_dict(rows(*asked, ids=["a", "b", "c"]))
    with pytest.raises(ConfigError, match=f"'w7' is not at character {start} .* 1 other rows of 3; all 2 ") as caught:
        qa().check_rows(raw, "train", labelled=True)
    assert caught.value.value == "b"
    code = caught.value.hint.partition(": ")[2]
    assert eval(code, {"context": context, "start": start, "len": len}) == context.index("w7")
    mixed = Dataset.from_dict(rows(*asked, ("w3", context, {"text": ["w7"], "answer_start": [1]}), ids="abcd"))
    with pytest.raises(ConfigError, match=r"2 other rows of 4\. ") as caught:
        qa().check_rows(mixed, "train", labelled=True)


def test_good_rows_pass():
    context = "w5 w6"
    raw = Dataset.from_dict(rows(("w1", context, answer(context, "w6", "w5")), ("w1", context, answer(""))))
    qa().check_rows(raw, "train", labelled=True)


def test_missing_text_is_refused():
    raw = Dataset.from_dict({"id": ["a", "b"], "question": ["w1", None], "context": ["w2", "w2"]})
    with pytest.raises(ConfigError, match=r"data\.transfer = b: its question and its context must be text"):
        qa().check_rows(raw, "transfer", labelled=False)


def test_preprocessing_names_all_that_affects_the_inputs():
    assert qa().preprocessing() == qa(max_answer_length=7).preprocessing()
    assert qa().preprocessing() != qa(max_length=17).preprocessing()
    assert qa().preprocessing() != qa(stride=5).preprocessing()


def test_tokenizing_in_other_processes():
    columns = rows(("w1", CONTEXT, answer(CONTEXT, "w3")))
    task, tokenizer = pickle.loads(pickle.dumps((qa(), bert_like())))
    assert task.encode(columns, tokenizer, True) == qa().encode(columns, bert_like(), True)
