"""Models that are not there, that cannot be loaded, or that do not fit the task, the data or one another."""

import pytest
from bad_case import GIVEN, QUESTIONS, Case

CASES = [
    Case(
        "teacher that is neither",
        overrides=[GIVEN, "teachers.a.model=reader"],
        key="teachers.a.model",
        value="reader",
        names=["text-classification", "`recipe: {}`", "a"],
    ),
    Case(
        "teacher from scratch without a recipe",
        overrides=[GIVEN],
        key="teachers.a.model",
        value="electra",
        names=["text-classification", "`recipe: {}`", "a"],
    ),
    Case(
        "teacher of other labels",
        overrides=[GIVEN, "teachers.a.model=other"],
        key="teachers.a.model",
        value="other",
        names=["(cat, dog)", "(bad, good)", "teachers.a.labels"],
    ),
    Case(
        "teacher of numbers in another order",
        overrides=[GIVEN, "teachers.a.model=renumbered_labels"],
        key="teachers.a.model",
        value="renumbered_labels",
        names=["order", "(LABEL_1, LABEL_0)", "teachers.a.labels"],
    ),
    Case(
        "teacher of two labels that differ in case",
        overrides=[GIVEN, "teachers.a.model=twice_bad"],
        key="teachers.a.model",
        value="twice_bad",
        names=["(bad, Bad)", "(bad, good)", "teachers.a.labels"],
    ),
    Case(
        "teacher without names for numbers in no order",
        overrides=[GIVEN, "task.labels=['1', '0']", "teachers.a.model=unnamed"],
        key="teachers.a.model",
        value="unnamed",
        names=["(1, 0)", "teachers.a.labels"],
    ),
    Case(
        "labels of a teacher that is trained here",
        overrides=["teachers.a.labels=[good, bad]"],
        key="teachers.0.labels",
        value="['good', 'bad']",
        names=["a", "recipe"],
    ),
    Case(
        "labels of a teacher in QA",
        job=QUESTIONS,
        overrides=[GIVEN, "teachers.a.model=reader", "teachers.a.labels=[a, b]"],
        key="teachers.a.labels",
        value="a, b",
        names=["question answering", "classes"],
    ),
    Case(
        "labels of a teacher that the task does not have",
        overrides=[GIVEN, "teachers.a.model=unnamed", "teachers.a.labels=[good, ugly]"],
        key="teachers.a.labels",
        value="good, ugly",
        names=["(good, ugly)", "(bad, good)", "teachers.a.labels"],
    ),
    Case(
        "teacher of another number of labels",
        overrides=[GIVEN, "teachers.a.model=three"],
        key="teachers.a.model",
        value="three",
        names=["3 labels (bad, good, ugly)", "2 (bad, good)", "task.labels"],
    ),
    Case(
        "teachers that disagree on labels",
        overrides=["task.labels=null", "teachers.*.recipe=null", "teachers.a.model=good", "teachers.b.model=reversed"],
        key="teachers.b.model",
        value="reversed",
        names=["(good, bad)", "teacher a (bad, good)", "task.labels"],
    ),
    Case(
        "pickled weights only",
        overrides=["student.model=pickled"],
        key="student.model",
        value="pickled",
        names=["pickled (pytorch_model.bin)", "save_pretrained", "safetensors"],
    ),
    Case(
        "no such model",
        overrides=["student.model=./none"],
        key="student.model",
        value="./none",
        names=["folder", "hub id"],
    ),
    Case(
        "model out of reach",
        overrides=["student.model=some/model"],
        key="student.model",
        value="some/model",
        names=["hub", "local folder"],
    ),
    Case(
        "folder without weights",
        overrides=["student.model=empty"],
        key="student.model",
        value="empty",
        names=["*.safetensors", "save_pretrained"],
    ),
    Case(
        "folder without config",
        overrides=["student.model=configless"],
        key="student.model",
        value="configless",
        names=["config.json", "save_pretrained"],
    ),
    Case(
        "truncated weights",
        overrides=["student.model=truncated"],
        key="student.model",
        value="truncated",
        names=["model.safetensors"],
    ),
    Case(
        "code of its own",
        overrides=["student.model=own_code"],
        key="student.model.trust_remote_code",
        value="False",
        names=["own_code", "true"],
    ),
    Case(
        "unknown kind of model",
        overrides=["student.model.config.model_type=elektra"],
        key="student.model.config.model_type",
        value="elektra",
        names=["electra"],
    ),
    Case(
        "unknown value of a model's config",
        overrides=["student.model.config.hidden_sizes=8"],
        key="student.model.config.hidden_sizes",
        value="8",
        names=["electra", "hidden_size"],
    ),
    Case(
        "classes in a model's config",
        overrides=["student.model.config.num_labels=2"],
        key="student.model.config.num_labels",
        value="2",
        names=["task.labels"],
    ),
    Case(
        "impossible value of a model's config",
        overrides=["student.model={config: {model_type: electra, hidden_size: wide}, tokenizer: good}"],
        key="student.model.config",
        value="wide",
        names=["hidden_size"],
    ),
    Case(
        "config that the weights do not fit",
        overrides=["student.model={pretrained: good, config: {intermediate_size: 64}}"],
        key="student.model.config",
        value="64",
        names=["(32,)", "(64,)"],
    ),
    Case(
        "model of another task",
        overrides=["student.model={config: {model_type: vit}, tokenizer: good}"],
        key="student.model.config",
        value="vit",
        names=["AutoModelForSequenceClassification"],
    ),
    Case(
        "row longer than the model",
        overrides=["task.max_length=65"],
        key="task.max_length",
        value="65",
        names=["teachers.a.model", "64 positions", "64"],
    ),
    Case(
        "no tokenizer",
        overrides=["student.model.tokenizer=null"],
        key="student.model.tokenizer",
        value="None",
        names=["tokenizer"],
    ),
    Case(
        "folder without tokenizer",
        overrides=["student.model=tokenless"],
        key="student.model.tokenizer",
        value="tokenless",
        names=["tokenizer"],
    ),
    Case(
        "tokenizer without padding",
        overrides=["student.model.tokenizer=unpadded"],
        key="student.model.tokenizer",
        value="unpadded",
        names=["padding token", "pad_token"],
    ),
    Case(
        "token without embedding",
        overrides=["student.model.config.vocab_size=20"],
        key="student.model.tokenizer",
        value="tokenizer",
        names=["token 24", "20", "vocab_size"],
    ),
    Case(
        "tokenizer that cuts otherwise",
        job=QUESTIONS,
        overrides=["teachers.b.model.tokenizer=cutting"],
        key="teachers.b.model",
        value="cutting",
        names=["tokenizer", "student", "same tokenizer"],
    ),
    Case(
        "stride as long as a window",
        job=QUESTIONS,
        overrides=["task.stride=40"],
        key="task.max_length",
        value="40",
        names=["'q0'", "40", "task.stride"],
    ),
]


SEARCHED = [
    Case(
        "a searched setting that the model does not have",
        overrides=["search.space={student.model.config.hiden_size: [16, 32]}"],
        key="search.space.student.model.config.hiden_size",
        value="16",
        names=["no such value", "hidden_size"],
    ),
    Case(
        "a searched model that is not there",
        overrides=["search.space={student.model: [./nowhere]}"],
        key="search.space.student.model",
        value="./nowhere",
        names=["folder"],
    ),
]


@pytest.mark.parametrize("case", SEARCHED, ids=lambda case: case.name)
def test_searched_models_are_checked(refused, case):
    case.check(refused("check", case))


@pytest.mark.parametrize("command", ["check", "distill"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_in_one_line(refused, command, case):
    case.check(refused(command, case))
