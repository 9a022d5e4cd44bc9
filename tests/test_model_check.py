"""A model is loaded and run once before anything is trained: what is wrong with it is known by then."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from odd_teacher import save_teacher
from safetensors.torch import load_file, save_file
from tiny import electra, questions_job, reviews_job, save_tokenizer
from tokenizers import processors

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.models.problems import not_a_model
from raykd.plan import model_check
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher
from raykd.tasks import make_task
from raykd.teachers.serving import TeacherModel

NAMES = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"max_position_embeddings": 64}
DECODER = {**SIZES, "model_type": "llama", "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
GIVEN, START = "teachers.a.model", "student.model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A job with one given teacher, which is in order."""
    folder = tmp_path_factory.mktemp("models")
    tree = override(reviews_job(folder), {"task.max_length": 32})
    tree["teachers"] = [{"name": "a", "model": str(save_teacher(folder / "good", 0))}]
    return SimpleNamespace(folder=folder, tree=tree, good=folder / "good")


def changed(made: SimpleNamespace, name: str, weights: Any = dict, **config: Any) -> Path:
    """A copy of the good teacher with other weights (a function of the old ones) or values in its config.json."""
    folder = made.folder / name
    if not folder.exists():
        shutil.copytree(made.good, folder)
        file = folder / "model.safetensors"
        save_file(weights(load_file(file)), file, {"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def saved(folder: Path, kind: str, values: dict[str, Any], save: str = "AutoModelForSequenceClassification") -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, save).from_config(transformers.AutoConfig.for_model(kind, **values, **NAMES))
    for weight in model.parameters():  # logits that differ from row to row by more than rounding
        if weight.dim() > 1:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return save_tokenizer(folder)


def tokenizer_of(folder: Path, layout: str | None = None, **settings: Any) -> Path:
    """A saved tokenizer, with other settings (None removes one) or another layout of a row."""
    save_tokenizer(folder)
    if layout:
        found = transformers.AutoTokenizer.from_pretrained(folder)
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=layout, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        found.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


def refusal(made: SimpleNamespace, key: str, model: Any, **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        prepare(build(override(made.tree, {key: model, **{k.replace("__", "."): v for k, v in more.items()}})))
    assert "\n" not in str(caught.value)
    assert not (made.folder / "runs" / "store" / "trainings").exists()
    return caught.value


def prefixed(prefix: str) -> Any:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def without(part: str) -> Any:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


QUERY = "electra.encoder.layer.0.attention.self.query"
ADAPTED = {f"{QUERY}.lora_A": torch.zeros(2, 16), f"{QUERY}.lora_B": torch.zeros(16, 2)}


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("headless", without("classifier"), "classifier.dense.bias"),
        ("half a head", without("out_proj"), "classifier.out_proj.bias"),
        ("half a body", without("intermediate"), "electra.encoder.layer.0.intermediate.dense.bias"),
        ("compiled", prefixed("_orig_mod."), "begin with _orig_mod."),
        ("parallel", prefixed("module."), "begin with module."),
        ("both", prefixed("module._orig_mod."), "begin with module."),
        ("unmerged", lambda weights: weights | ADAPTED, f"{QUERY}.lora_A"),
        ("more than its class", lambda weights: weights | {"gate.weight": torch.zeros(2, 2)}, "gate.weight"),
    ],
)
def test_given_teacher_whose_weights_are_not_all_its_own(made, name, weights, named):
    error = refusal(made, GIVEN, str(changed(made, name, weights)))
    assert (error.key, error.value) == (GIVEN, str(made.folder / name))
    assert named in error.reason


def test_left_over_weights_are_taken(made):
    """A body's pooler, a head of pretraining and tables of older versions: models on the hub often have them."""
    extra = {
        "electra.pooler.dense.weight": torch.zeros(16, 16),
        "discriminator_predictions.dense.bias": torch.zeros(16),
    }
    extra |= {"electra.embeddings.position_ids": torch.arange(64)}
    extra |= {"electra.encoder.layer.0.attention.self.masked_bias": torch.zeros(1)}
    folder = str(changed(made, "left_over", lambda weights: weights | extra))
    prepare(build(override(made.tree, {GIVEN: folder, START: folder})))


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("compiled", prefixed("_orig_mod."), "begin with _orig_mod."),
        ("half a body", without("intermediate"), "electra.encoder.layer.0.intermediate.dense.bias"),
        ("unmerged", lambda weights: weights | ADAPTED, f"{QUERY}.lora_A"),
    ],
)
@pytest.mark.parametrize("key", [START, GIVEN])
def test_start_of_a_training_whose_body_is_not_whole(made, name, weights, named, key):
    more = {"teachers.a.recipe": {"seed": 1}} if key == GIVEN else {}
    error = refusal(made, key, str(changed(made, name, weights)), **more)
    assert (error.key, error.value) == (key, str(made.folder / name))
    assert named in error.reason


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForPreTraining"),
        ("bert", "AutoModelForMaskedLM"),  # no pooler: it is drawn anew
        ("bert", "AutoModelForQuestionAnswering"),
        ("roberta", "AutoModel"),  # a pooler too many
        ("llama", "AutoModelForCausalLM"),
    ],
)
def test_a_trained_models_head_can_be_new(made, kind, save):
    values = {k: v for k, v in (DECODER if kind == "llama" else SIZES).items() if k != "model_type"}
    values |= {"type_vocab_size": 2} if kind == "roberta" else {}
    folder = saved(made.folder / f"{kind}_{save}", kind, values | {"pad_token_id": 0}, save)
    prepare(build(override(made.tree, {START: str(folder)})))


def test_a_head_of_other_classes_is_drawn_anew(made, caplog):
    """A student can start from a checkpoint with another number of classes. Its body stays, its head is the seed's."""
    caplog.set_level("INFO", "raykd")
    folder = made.folder / "three"
    three = electra(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    config = transformers.AutoConfig.for_model(**three)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    prepare(build(override(made.tree, {START: str(folder)})))
    (line,) = [record.getMessage() for record in caplog.records if "drawn anew" in record.getMessage()]
    assert START in line
    assert "3 classes" in line
    task = make_task(TaskConfig(type="text-classification", max_length=32), ["bad", "good"])
    opened = open_model(ModelConfig(pretrained=str(folder)), task, START)
    first, second = (load_model(opened, seed).state_dict() for seed in (0, 1))
    theirs = load_file(folder / "model.safetensors")
    new = "classifier.out_proj.weight"
    assert first[new].shape == (2, 16)
    assert not torch.equal(first[new], second[new])
    assert torch.equal(first[new], load_model(opened, 0).state_dict()[new])
    assert all(torch.equal(first[name], theirs[name]) for name in theirs if "out_proj" not in name)
    with pytest.raises(ConfigError, match=r"3 labels") as error:
        prepare(build(override(made.tree, {GIVEN: str(folder)})))
    assert error.value.key == GIVEN


def test_layers_can_be_left_out_but_not_added(made):
    folder = str(saved(made.folder / "two_layers", "bert", SIZES, "AutoModel"))
    prepare(build(override(made.tree, {START: {"pretrained": folder, "config": {"num_hidden_layers": 1}}})))
    error = refusal(made, START, {"pretrained": folder, "config": {"num_hidden_layers": 3}})
    assert "bert.encoder.layer.2." in error.reason
    # Without the user's word for it, layers without a place are a mistake.
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    assert "encoder.layer.1." in refusal(made, START, folder).reason


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_of_a_model_that_is_not_here(made, whole):
    """Its own folder is all that is here."""
    pytest.importorskip("peft")
    folder = made.folder / f"adapter_{whole}"
    save_tokenizer(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base", "r": 4}))
    save_file({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")
    if whole:
        shutil.copy(made.good / "config.json", folder)
    for key in (GIVEN, START):
        error = refusal(made, key, str(folder))
        assert error.key == key
        assert error.value == "some/base", "the hub cannot be reached"


def test_quantised_checkpoint_without_its_library(made):
    settings = {"quant_method": "gptq", "bits": 4}  # its library is not among those that the tests install
    error = refusal(made, GIVEN, str(changed(made, "quantised", quantization_config=settings)))
    assert error.key == GIVEN
    assert "quantised (gptq)" in error.reason


def test_kind_of_model_whose_package_is_not_installed():
    with pytest.raises(ImportError) as caught:  # what a folder of timm's model ends in, if timm is not installed
        transformers.utils.requires_backends("Model", "essentia")
    error = not_a_model(ModelConfig(pretrained="folder"), GIVEN, caught.value)
    assert (error.key, error.value) == (GIVEN, "folder")
    assert "package essentia" in error.reason
    assert error.hint == "pip install essentia"


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_teacher_of_another_problem(made, problem):
    folder = str(changed(made, problem, problem_type=problem))
    error = refusal(made, GIVEN, folder)
    assert error.key == GIVEN
    assert problem in error.reason
    prepared = prepare(build(override(made.tree, {START: folder})))  # to be trained anew: as ours
    assert load_model(prepared.student.model, 0).config.problem_type is None


def test_logit_that_is_not_finite(made):
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["classifier.out_proj.bias"][1] = float("nan")
        return weights

    error = refusal(made, GIVEN, str(changed(made, "nan", spoil)))
    assert (error.key, "nan" in error.reason) == (GIVEN, True)


def test_logits_that_depend_on_other_rows(made):
    """FNet mixes padding into its rows."""
    config = {k: v for k, v in SIZES.items() if k != "num_attention_heads"} | {"initializer_range": 0.5}
    error = refusal(made, START, {"config": {"model_type": "fnet", **config}, "tokenizer": str(made.good)})
    assert error.key == START
    assert "rows of the batch" in error.reason


def test_start_of_a_decoder_without_padding(made):
    """Its tokenizer's end of text pads, and its config says so wherever it is loaded again."""
    folder = tokenizer_of(made.folder / "endless", pad_token=None, eos_token="[SEP]")
    config = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    for tokenizer, padding in ((folder, 3), (made.good, 0)):
        spec = {"config": config, "tokenizer": str(tokenizer)}
        prepared = prepare(build(override(made.tree, {START: spec})))
        assert prepared.student.model.processor.pad_token_id == padding
        model: Any = load_model(prepared.student.model, 0, prepared.student.model.processor)
        assert model.config.pad_token_id == padding
        assert model.transformer.wte.weight[padding].abs().sum() > 0  # an embedding like any other


@pytest.mark.parametrize("layout", ["[CLS] $A", "[CLS] $A [SEP]"])
def test_given_decoder_without_padding(made, layout):
    """Where rows end with the token that would pad, the model would read another token than it was trained to."""
    folder = saved(made.folder / f"decoder {layout}", "llama", {k: v for k, v in DECODER.items() if k != "model_type"})
    tokenizer_of(folder, layout, pad_token=None, eos_token="[SEP]")
    if layout.endswith("[SEP]"):
        error = refusal(made, GIVEN, str(folder))
        assert error.key == GIVEN
        assert "rows of the batch" in error.reason
        assert "pad_token" in error.hint
    else:
        prepare(build(override(made.tree, {GIVEN: str(folder)})))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("distilbert", {"vocab_size": 64, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
        ("roberta", {**SIZES, "type_vocab_size": 1, "pad_token_id": 0}),
    ],
)
def test_token_types_that_a_model_does_not_have(made, kind, values):
    """They are not fed, and the tokenizer that a student is saved with does not make them."""
    folder = saved(made.folder / kind, kind, values)
    prepared = prepare(build(override(made.tree, {GIVEN: str(folder)})))
    assert "token_type_ids" not in prepared.teachers["a"].splits["train"].open().column_names
    assert "token_type_ids" in prepared.student.splits["train"].open().column_names  # ELECTRA has them
    prepared.teachers["a"].model.processor.save_pretrained(made.folder / "again")
    again = transformers.AutoTokenizer.from_pretrained(made.folder / "again")
    assert "token_type_ids" not in again(["good film"])


def test_reader_without_its_head(tmp_path):
    tree = questions_job(tmp_path)
    body = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**electra()))
    body.save_pretrained(tmp_path / "reader")
    path = tmp_path / "reader" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["ElectraForQuestionAnswering"]}))
    save_tokenizer(tmp_path / "reader")
    with pytest.raises(ConfigError) as caught:
        prepare(build(override(tree, {GIVEN: str(tmp_path / "reader"), "teachers.a.recipe": None})))
    assert caught.value.key == GIVEN
    assert "qa_outputs.bias" in caught.value.reason
    prepare(build(override(tree, {START: str(tmp_path / "reader")})))


def test_models_that_passed_are_not_loaded_again(made, monkeypatch):
    prepare(build(made.tree))
    loaded: list[str] = []
    load = model_check._check_loaded
    monkeypatch.setattr(model_check, "_check_loaded", lambda *args: (loaded.append(args[-1]), load(*args))[1])
    prepare(build(made.tree))
    assert loaded == []
    # The same checkpoint as a student's start: its head need not be there, so this is another question.
    prepare(build(override(made.tree, {START: str(made.good)})))
    assert loaded == [START]
    # Other rows, and rows of another length.
    prepare(build(override(made.tree, {"data.test": "train[90:]"})))
    assert loaded == [START, GIVEN, START]
    prepare(build(override(made.tree, {"task.max_length": 16})))
    assert loaded == [START, *[GIVEN, START] * 2]
    # Other weights in the same folder.
    folder = changed(made, "rewritten")
    tree = override(made.tree, {GIVEN: str(folder)})
    prepare(build(tree))
    weights = folder / "model.safetensors"
    save_file({n: w + 1 for n, w in load_file(weights).items()}, weights, {"format": "pt"})
    loaded.clear()
    prepare(build(tree))
    assert loaded == [GIVEN]


MODELING = """
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification
from .mine_head import SCALE


class Mine(ElectraForSequenceClassification):
    def forward(self, **inputs):
        found = super().forward(**inputs)
        found.logits = SCALE * found.logits
        return found
"""


def with_code(made: SimpleNamespace, name: str, where: str = "") -> Path:
    folder = changed(made, name, auto_map={"AutoModelForSequenceClassification": f"{where}mine.Mine"})
    if not where:
        write_code(folder, 1)
    return folder


def write_code(folder: Path, scale: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(MODELING)
    (folder / "mine_head.py").write_text(f"SCALE = {scale}\n")


def digest(spec):
    return open_model(spec, make_task(TaskConfig(type="text-classification")), "m").digest


def test_own_code_of_a_model_is_part_of_its_identity(made):
    """Its helpers, too; but not where it is not run."""
    folder = with_code(made, "own_code")
    trusting = ModelConfig(pretrained=str(folder), trust_remote_code=True)
    plain = ModelConfig(pretrained=str(folder))
    before = digest(trusting), digest(plain)
    write_code(folder, 2)
    assert digest(trusting) != before[0]
    assert digest(plain) == before[1]


def test_code_of_another_repository_is_part_of_the_identity(made, tmp_path, monkeypatch):
    """`auto_map` may name one of the hub; here it is in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--someone--code"
    (cache / "refs").mkdir(parents=True)
    found = []
    for commit, scale in (("a" * 40, 1), ("b" * 40, 2)):
        write_code(cache / "snapshots" / commit, scale)
        (cache / "refs" / "main").write_text(commit)
        spec = ModelConfig(pretrained=str(with_code(made, "elsewhere", "someone/code--")), trust_remote_code=True)
        found.append(digest(spec))
    assert found[0] != found[1]


def test_teacher_with_code_of_its_own_is_known_by_it_and_checked(made):
    folder = with_code(made, "served_code")
    model = {"pretrained": str(folder), "trust_remote_code": True}
    keys = []
    for scale in (1, 2):
        write_code(folder, scale)
        config = build(override(made.tree, {GIVEN: model}))
        keys.append(served_teacher(config, prepare(config), config.teachers[0], [], "float32").key.fingerprint)
    assert keys[0] != keys[1]
    (folder / "mine.py").write_text(MODELING.replace("SCALE * found", "SCALE * missing"))
    error = refusal(made, GIVEN, model)
    assert error.key == GIVEN
    assert "'missing' is not defined" in error.reason


def test_served_model_that_lost_weights_is_refused(made):
    """Also where no check came before: a trained teacher's folder, or a driver with too little memory."""
    config = build(made.tree)
    served = served_teacher(config, prepare(config), config.teachers[0], [], "float32")
    TeacherModel(served)
    broken = ModelConfig(pretrained=str(changed(made, "lost", without("out_proj"))))
    with pytest.raises(ConfigError) as caught:
        TeacherModel(dataclasses.replace(served, models=(broken,)))
    assert caught.value.key == GIVEN
    assert "classifier.out_proj.bias" in caught.value.reason


def written(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")
    return folder


def test_free_memory_is_what_the_containers_limit_leaves(tmp_path):
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:       8000 kB\nMemAvailable:    5000 kB\n")
    free = model_check._free_memory
    assert free(machine, tmp_path / "none") == 5000 * 1024
    statistics = "anon 900000\ninactive_file 100000"
    newer = {"memory__max": 2_000_000, "memory__current": 1_000_000, "memory__stat": statistics}
    assert free(machine, written(tmp_path / "v2", **newer)) == 1_100_000
    assert free(machine, written(tmp_path / "endless", **newer | {"memory__max": "max"})) == 5000 * 1024
    older = {"memory__limit_in_bytes": 2_000_000, "memory__usage_in_bytes": 1_000_000}
    written(tmp_path / "v1" / "memory", **older, memory__stat="total_inactive_file 300000")
    assert free(machine, tmp_path / "v1") == 1_300_000
    assert free(tmp_path / "none", tmp_path / "none") == float("inf")


def test_a_model_that_does_not_fit_into_memory_is_skipped_with_a_warning(made, monkeypatch, caplog):
    folder = changed(made, "too large", without("classifier"))  # it would be refused if it were loaded
    monkeypatch.setattr(model_check, "_free_memory", lambda: 1e3)
    prepare(build(override(made.tree, {GIVEN: str(folder)})))
    assert any(GIVEN in text and "not checked" in text for text in caplog.messages)
    monkeypatch.undo()
    assert "classifier" in refusal(made, GIVEN, str(folder)).reason, "once there is room, it is"


@pytest.mark.parametrize(("method", "warned"), [("weighted", 1), ("kd", 0)])
def test_one_warning_that_w_has_no_effect_with_one_teacher(made, caplog, method, warned):
    prepare(build(override(made.tree, {"method.type": method})))
    assert sum("one teacher" in text for text in caplog.messages) == warned
