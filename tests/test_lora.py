"""LoRA: adapters that are trained here, and folders that hold one. Every training runs in this process, without Ray."""

import itertools
import json
import shutil
from importlib.util import find_spec as really_find
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny import bert, capitals_job, electra, reviews_job
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
)

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.models import LoraConfig, ModelConfig
from raykd.models import lora as lora_module
from raykd.models.loading import load_model
from raykd.models.lora import add_lora, parameters, target_layers
from raykd.models.opened import open_model
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.predictions.predictor import Predictor
from raykd.tasks import make_task
from raykd.teachers.serving import TeacherModel
from raykd.training.events import Done, Evaluated
from raykd.training.loop import train

pytestmark = pytest.mark.skipif(really_find("peft") is None, reason="wants peft")
peft = Late("peft")  # every process of the tests reads this file, and one uses it

LORA = {"r": 2, "alpha": 6, "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A pretrained model without the task's head, its tokenizer, and the data."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    reviews_job(folder)
    ElectraForPreTraining(ElectraConfig(**electra(dropout=0.0, num_hidden_layers=2))).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "base")
    return folder


def job_tree(base: Path, output: str = "runs", **changes: Any) -> dict[str, Any]:
    tree = reviews_job(base)
    shared = {"name": "lora", "output": str(base / output), "training.steps": 6, "training.eval_every": 2}
    shared |= {"student.model": str(base / "base"), "teachers.*.model": str(base / "base"), "student.lora": LORA}
    return override(tree, shared | changes)


def finetuned(base: Path, output: str = "runs", **changes: Any) -> Job:
    """The baseline's training, not run yet."""
    config = build(job_tree(base, output, **changes))
    return student_jobs(config, prepare(config), Method(type="finetune"), [])[0]


@pytest.fixture(scope="module")
def trained(base) -> dict[str, Job]:
    jobs = {}
    for save in ("merged", "adapter"):
        jobs[save] = finetuned(base, **{"student.lora": {**LORA, "save": save}})
        list(train(jobs[save]))
    return jobs


def model_of(job: Job) -> Path:
    return Path(job.result()["model"])


def test_what_is_saved_is_the_product_of_the_matrices(base, trained):
    """W + alpha / r * B A, computed here in float64 from the adapter's own file."""
    merged = load_file(model_of(trained["merged"]) / "model.safetensors")
    adapter = load_file(model_of(trained["adapter"]) / "adapter_model.safetensors")
    start = load_file(base / "base" / "model.safetensors")
    changed = [name for name, value in start.items() if name in merged and not torch.equal(value, merged[name])]
    assert len(changed) == 4
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed), "two layers of two"
    for name in changed:
        a, b = (adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"].double() for x in "AB")
        assert a.shape[0] == b.shape[1] == 2
        assert torch.allclose(start[name].double() + 6 / 2 * b @ a, merged[name].double(), atol=1e-6)
    heads = {name for name in merged if name.startswith("classifier.")}
    assert heads
    for name in heads:
        assert torch.equal(adapter[f"base_model.model.{name}"], merged[name]), "the new head is trained as a whole"
    assert len(adapter) == len(heads) + 2 * len(changed)


def test_both_have_the_same_scores(trained):
    a, b = (job.result()["generations"][0]["test"] for job in trained.values())
    assert a == b
    assert trained["merged"].fingerprint != trained["adapter"].fingerprint


def test_an_adapter_says_where_it_belongs(base, trained):
    folder = model_of(trained["adapter"])
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(base / "base")
    assert set(saved["target_modules"]) == {"query", "value"}
    assert (saved["r"], saved["lora_alpha"], saved["task_type"]) == (2, 6, "SEQ_CLS")
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "LoRA: r = 2, alpha = 6, dropout = 0 on query, value, this is the adapter alone" in card
    assert (
        "- LoRA: r = 2, alpha = 6, dropout = 0 on query, value, merged"
        in (model_of(trained["merged"]) / "README.md").read_text()
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[2, 7, 9, 12, 3]])).logits


def test_peft_loads_the_adapter(base, trained):
    expected = logits(AutoModelForSequenceClassification.from_pretrained(model_of(trained["merged"])))
    folder = model_of(trained["adapter"])
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "bad", 1: "good"}
    start = AutoModelForSequenceClassification.from_pretrained(base / "base", config=config)
    loaded = peft.PeftModel.from_pretrained(start, folder)
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    assert not torch.equal(expected, torch.zeros_like(expected))


def test_predictions_of_the_adapter(trained):
    rows = Dataset.from_dict({"text": ["good fine film", "bad awful plot"]})
    found = []
    for job in trained.values():
        predictor = Predictor(ModelConfig(pretrained=str(model_of(job))))
        found.append([answer for _, answers in predictor.predict(rows) for answer in answers])
    for a, b in zip(*found, strict=True):
        assert a["prediction"] == b["prediction"]
        assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-5)


def test_checkpoints_hold_what_is_trained_and_resume(base, trained):
    """The body's weights are in neither file, and a training that was interrupted ends as one that was not."""
    job = finetuned(base, "again")
    events = train(job)
    assert [e.step for e in itertools.islice((e for e in events if isinstance(e, Evaluated)), 2)] == [2, 4]
    events.close()
    folder = job.folder / "generation-1"
    best, state = load_file(folder / "best.safetensors"), torch.load(folder / "checkpoint.pt", weights_only=True)
    for names in (best, state["model"]):
        layers = [name for name in names if "lora_" not in name and "modules_to_save" not in name]
        assert [name for name in layers if not name.endswith(("position_ids", "token_type_ids"))] == []
    assert sum(len(group["params"]) for group in state["optimizer"]["param_groups"]) == 8 + 4
    assert isinstance(list(train(job))[-1], Done)
    again, once = (load_file(model_of(j) / "model.safetensors") for j in (job, trained["merged"]))
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_gradient_checkpointing_changes_no_number(base, trained):
    job = finetuned(base, "checkpointed", **{"training.gradient_checkpointing": True})
    list(train(job))
    a, b = (load_file(model_of(j) / "model.safetensors") for j in (job, trained["merged"]))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_distilled_student_and_a_teacher_with_an_adapter(base):
    """Two teachers, one an adapter, one merged, each from its own recipe; their student is an adapter, too."""
    changes = {"teachers.a.recipe.lora": {**LORA, "save": "adapter"}, "teachers.b.recipe.lora": {**LORA, "r": 1}}
    config = build(job_tree(base, "taught", **changes, **{"student.lora.save": "adapter"}))
    prepared = prepare(config)
    served = []
    for teacher, jobs in zip(config.teachers, teacher_jobs(config, prepared).values(), strict=True):
        list(train(jobs[0]))
        served.append(served_teacher(config, prepared, teacher, [jobs[0].result()["model"]], "float32"))
        assert jobs[0].lora is not None
        assert len(TeacherModel(served[-1]).models) == 1
    assert served[0].key.fingerprint != served[1].key.fingerprint
    job = student_jobs(config, prepared, Method(type="kd", alpha=0.5), served)[0]
    assert job.lora is not None
    assert job.lora.save == "adapter"


def test_an_adapter_that_would_publish_a_local_path_is_refused_before_it_is_trained(base, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tree = job_tree(base, **{"student.lora": {**LORA, "save": "adapter"}, "student.push_to_hub": "me/student"})
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    assert error.value.key == "student.lora.save"


# Adapters that are given ----------------------------------------------------------------------------


@pytest.fixture
def as_peft_saves(trained, tmp_path) -> Path:
    """The adapter without what raykd adds: no config.json, no tokenizer."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(model_of(trained["adapter"]) / name, folder / name)
    return folder


def opened(folder: Path, base: Path):
    task = make_task(build(job_tree(base)).task, ["bad", "good"])
    return open_model(ModelConfig(pretrained=str(folder)), task, "teachers.a.model")


def test_a_given_teacher_can_be_an_adapter(base, trained, as_peft_saves):
    found = {}
    for name, model in (("adapter", as_peft_saves), ("merged", model_of(trained["merged"]))):
        tree = job_tree(base, "given", **{"teachers.a.model": str(model), "teachers.a.recipe": None})
        config = build(override(tree, {"teachers.a.labels": ["bad", "good"]}))
        prepared = prepare(config)
        served = served_teacher(config, prepared, config.teachers[0], [], "float32")
        found[name] = served, logits(TeacherModel(served).models[0])
    assert torch.allclose(found["adapter"][1], found["merged"][1], atol=1e-5)
    assert found["adapter"][0].processor == found["merged"][0].processor, "its tokenizer is that of its model"
    digests = {name: served.digests for name, (served, _) in found.items()}
    assert digests["adapter"] != digests["merged"]


def test_the_identity_of_an_adapter_is_its_content_and_its_models(base, as_peft_saves, tmp_path):
    first = opened(as_peft_saves, base).digest
    settings = json.loads((as_peft_saves / "adapter_config.json").read_text())
    elsewhere = shutil.copytree(base / "base", tmp_path / "moved")

    def digest(**changes: Any) -> str:
        (as_peft_saves / "adapter_config.json").write_text(json.dumps(settings | changes))
        return opened(as_peft_saves, base).digest

    assert digest(base_model_name_or_path=str(elsewhere), peft_version="0") == first
    assert digest(lora_alpha=7) != first
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    assert digest(base_model_name_or_path=str(elsewhere)) != first
    own = as_peft_saves / "config.json"  # is read instead of the base's
    found = []
    for changes in ({}, {"transformers_version": "0"}, {"layer_norm_eps": 1e-3}):
        own.write_text(json.dumps(config | changes))
        found.append(digest())
    own.unlink()
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "does not say of which model"),
        ({"base_model_name_or_path": "/no/such/folder"}, "it is an adapter of /no/such/folder, and there is no such"),
        ({"r": 3}, "cannot be merged"),
    ],
)
def test_an_adapter_that_cannot_be_used(base, as_peft_saves, change, said):
    settings = json.loads((as_peft_saves / "adapter_config.json").read_text())
    (as_peft_saves / "adapter_config.json").write_text(json.dumps(settings | change))
    config = build(job_tree(base, "unusable", **{"student.model": str(as_peft_saves), "student.lora": None}))
    with pytest.raises(ConfigError) as error:
        prepare(config)
    assert error.value.key.startswith("student.model")
    assert said in error.value.reason


def test_a_student_can_start_from_an_adapter(base, as_peft_saves):
    job = finetuned(base, "from_adapter", **{"student.model": str(as_peft_saves), "student.lora": None})
    list(train(job))
    start = load_file(base / "base" / "model.safetensors")
    trained = load_file(model_of(job) / "model.safetensors")
    same = [name for name in start if name in trained and torch.equal(start[name], trained[name])]
    assert not any("encoder" in name and name.endswith("weight") for name in same), "all of its weights are trained"


# What is refused, before anything starts ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"student.lora.target_modules": ["quary"]}, "student.lora.target_modules", "Did you mean query"),
        ({"student.lora.target_modules": ["q_proj"]}, "student.lora.target_modules", "matches no layer"),
        ({"student.lora.target_modules": ["LayerNorm"]}, "student.lora.target_modules", "is no linear layer"),
        ({"student.lora.target_modules": ["classifier"]}, "student.lora.target_modules", "is no linear layer"),
        ({"teachers.a.recipe.lora": {"target_modules": "keys"}}, "teachers.a.recipe.lora.target_modules", "key"),
        ({"student.lora.r": 0}, "student.lora.r", ""),
        ({"student.lora.target_modules": []}, "student.lora.target_modules", ""),
    ],
)
def test_settings_that_do_not_fit(base, changes, key, said):
    with pytest.raises(ConfigError) as error:
        prepare(build(job_tree(base, "refused", **changes)))
    assert error.value.key == key
    assert said in str(error.value)


def test_a_model_from_scratch_has_nothing_to_adapt(base):
    tree = override(reviews_job(base), {"student.lora": LORA, "output": str(base / "refused")})
    with pytest.raises(ConfigError) as error:
        prepare(build(tree))
    assert error.value.key == "student.lora"
    assert "from scratch" in error.value.reason


def test_an_adapter_on_an_adapter_can_only_be_merged(base, as_peft_saves):
    changes = {"student.model": str(as_peft_saves), "student.lora": {**LORA, "save": "adapter"}}
    with pytest.raises(ConfigError) as error:
        prepare(build(job_tree(base, "refused", **changes)))
    assert error.value.key == "student.lora.save"


def test_without_peft(base, as_peft_saves, monkeypatch):
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None if name == "peft" else really_find(name))
    with pytest.raises(ConfigError, match=r"raykd\[lora\]"):
        prepare(build(job_tree(base, "refused")))
    with pytest.raises(ConfigError, match=r"raykd\[lora\]"):
        prepare(build(job_tree(base, "refused", **{"student.lora": None, "student.model": str(as_peft_saves)})))


# Language models ------------------------------------------------------------------------------------


def test_a_language_model_learns_with_an_adapter(tmp_path):
    """Its head, the table of its tokens, is not trained, and the adapter that is saved gives the scores again."""
    tree = capitals_job(tmp_path)
    model = tree["student"]["model"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**model["config"])).save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(model["tokenizer"]).save_pretrained(tmp_path / "start")
    changes = {"student.model": str(tmp_path / "start"), "student.lora": {"r": 2, "save": "adapter"}}
    config = build(override(tree, changes | {"training.steps": 2, "training.eval_every": 1}))
    prepared = prepare(config)
    job = student_jobs(config, prepared, Method(type="finetune"), [])[0]
    values = [e.metrics["nll"] for e in train(job) if isinstance(e, Evaluated)]
    assert len(set(values)) == 2
    assert job.result()["generations"][0]["validation"]["nll"] == min(values)
    folder = model_of(job)
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(".lora_" in name for name in saved)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    rows = Dataset.from_dict({"prompt": ["a"], "completion": ["bcd"]})
    columns = prepared.task.encode(rows[:], prepared.student.model.processor, True)
    batch = prepared.task.collate(columns, prepared.student.model.processor)
    losses = []
    for spec in (str(folder), str(tmp_path / "start")):
        opened = open_model(ModelConfig(pretrained=spec), prepared.task, "student.model")
        with torch.no_grad():
            found = load_model(opened, 0, opened.processor).eval()(**batch.inputs)
        losses.append(prepared.task.decisions(found, batch))
    assert not torch.equal(*losses)


# Layers ---------------------------------------------------------------------------------------------


def test_all_linear_layers_of_the_body_by_default():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16))
    names = target_layers(model, LoraConfig(), "student.lora")
    assert names == [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    before = parameters(model)[0]
    add_lora(model, LoraConfig(r=1), "student.lora", "AutoModelForCausalLM", [])
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora_" in name for name in trained), "not the head, which is the table of tokens"
    # r x (inputs + outputs) of each layer: 8 to 24, 8 to 8, 8 to 32, 32 to 8.
    assert parameters(model) == (before, 32 + 16 + 40 + 40)


def test_a_layer_of_the_body_that_is_drawn_anew_is_trained_as_a_whole(base, tmp_path):
    """BERT's pooler, which a checkpoint of a masked language model lacks."""
    BertForMaskedLM(BertConfig(**bert())).save_pretrained(tmp_path)
    spec = ModelConfig(pretrained=str(tmp_path), tokenizer=str(base / "base"))
    task = make_task(build(job_tree(base)).task, ["bad", "good"])
    model = load_model(open_model(spec, task, "student.model"), 0, None, LoraConfig(r=1), "student.lora")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    assert whole == {
        f"{layer}.modules_to_save.default.{kind}"
        for layer in ("bert.pooler.dense", "classifier")
        for kind in ("weight", "bias")
    }
    assert not any("pooler" in name for name in trained - whole)
    assert len(trained - whole) == 2 * 6 * 2, "the two matrices of six linear layers in each of two blocks"


def test_no_fingerprint_changes_without_it(base, trained):
    job = finetuned(base, **{"student.lora": None})
    assert job.lora is None
    assert len({job.fingerprint, *(j.fingerprint for j in trained.values())}) == 3


@pytest.mark.parametrize(
    ("task", "layers", "classes"),
    [
        ("text-classification", {"classifier": 3, "pre_classifier": 8}, 3),  # as peft saves DistilBERT's
        ("text-classification", {"classifier.dense": 8, "classifier.out_proj": 3}, 3),
        ("regression", {"classifier": 1}, 1),
    ],
)
def test_an_adapter_without_a_config_has_the_classes_of_its_last_layer(base, as_peft_saves, task, layers, classes):
    names = {f"base_model.model.{name}.weight": torch.zeros(outputs, 8) for name, outputs in layers.items()}
    save_file(names, as_peft_saves / "adapter_model.safetensors")
    tree = override(job_tree(base), {"task.type": task, "task.labels": None})
    spec = ModelConfig(pretrained=str(as_peft_saves))
    model = open_model(spec, make_task(build(tree).task, ["a", "b", "c"][:classes]), "teachers.a.model")
    assert model.saved_config["num_labels"] == classes
