"""Two workers train and evaluate one model, whatever its layers are."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
import transformers
from PIL.Image import fromarray
from taught import curve, weights
from tiny import llama, save_bytes_tokenizer
from two_workers import train_by_two

from raykd.common.ranks import DistContext
from raykd.config.load import build
from raykd.config.methods import Method
from raykd.config.schema import ModelConfig, TaskConfig, TrainingConfig
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.tasks import make_task
from raykd.tasks.common import Batch
from raykd.training.events import Evaluated, from_json
from raykd.training.loop import train
from raykd.training.optimization import make_optimizer
from raykd.training.parallel import _drops_layers, freeze_unused
from raykd.training.rows import shortened

DINOV2 = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
DINOV2 |= {"image_size": 8, "patch_size": 4, "initializer_range": 0.3}
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}


def pictures_job(folder, config):
    """Eight pixels a side, bright or dark; 16 rows to train on, 13 for validation, so that workers' shares differ."""
    rng = np.random.default_rng(0)
    for label, value in (("bright", 140), ("dark", 110)):
        (folder / "data" / label).mkdir(parents=True)
        for i in range(18):
            pixels = (rng.normal(value, 60, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            fromarray(pixels).save(folder / "data" / label / f"{i:02}.png")
    torch.manual_seed(0)
    start = transformers.AutoModelForImageClassification.from_config(transformers.AutoConfig.for_model(**config))
    start.save_pretrained(folder / "start")
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "start")
    model = {"pretrained": str(folder / "start")}
    parts = {"train": "train[:8]+train[28:]", "validation": "train[8:15]+train[22:28]", "test": "train[15:22]"}
    tree = {
        "name": "pictures",
        "output": str(folder / "runs"),
        "task": {"type": "image-classification"},
        "data": {"source": str(folder / "data"), **parts},
        "training": {"steps": 4, "batch_size": 8, "learning_rate": 0.01, "eval_every": 4, "weight_decay": 0.5},
        "teachers": [{"name": "a", "model": model, "recipe": {}}],
        "student": {"model": model},
    }
    made = build(tree)
    return student_jobs(made, prepare(made), Method(type="finetune"), [])[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """DINOv2 and ResNet, each by two workers, and the events of both workers."""
    folder = tmp_path_factory.mktemp("two")
    jobs = {name: pictures_job(folder / name, config) for name, config in (("dinov2", DINOV2), ("resnet", RESNET))}
    two = {name: dataclasses.replace(job, workers=2) for name, job in jobs.items()}
    train_by_two(list(two.values()), folder)
    events = {
        name: [[from_json(line) for line in (job.folder / f"events-{rank}.jsonl").open()] for rank in (0, 1)]
        for name, job in two.items()
    }
    return jobs, two, events


def test_parameters_without_a_gradient_are_frozen_and_change_no_number(trained):
    """DINOv2's mask token: DistributedDataParallel would wait for its gradient."""
    jobs, two, events = trained
    alone = curve(train(jobs["dinov2"]))
    assert len(alone) == 4
    np.testing.assert_allclose(curve(events["dinov2"][0]), alone, rtol=2e-5)
    one, both = weights(jobs["dinov2"]), weights(two["dinov2"])
    mask = "dinov2.embeddings.mask_token"
    start = transformers.AutoModelForImageClassification.from_pretrained(jobs["dinov2"].model.pretrained)
    for state in (one, both):
        assert torch.equal(state[mask], start.state_dict()[mask]), "not even decayed"


def test_workers_evaluate_the_model_that_is_saved(trained):
    """BatchNorm's running statistics are each worker's own after a step."""
    _, two, events = trained
    result = json.loads((two["resnet"].folder / "result.json").read_text())
    for of_worker in events["resnet"]:
        evaluation = next(e for e in of_worker if isinstance(e, Evaluated))
        assert evaluation.metrics["nll"] == result["generations"][0]["validation"]["nll"]


def images(count):
    return Batch({"pixel_values": torch.randn(count, 3, 8, 8)}, torch.zeros(count, 1, dtype=torch.int64))


def test_only_what_the_decisions_depend_on_is_trained(caplog):
    config = transformers.AutoConfig.for_model(**DINOV2)
    model = transformers.AutoModelForImageClassification.from_config(config)
    pictures = type("Settings", (), {"type": "image-classification"})
    with caplog.at_level(logging.WARNING):
        frozen = freeze_unused(model, make_task(pictures, ["a", "b"]), images(2), DistContext(), "float32", "x")
    assert frozen == ["dinov2.embeddings.mask_token"]
    assert len(caplog.records) == 1
    assert frozen[0] in caplog.text
    assert all(parameter.grad is None for parameter in model.parameters())
    groups = make_optimizer(model, TrainingConfig(steps=1)).param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if name not in frozen}


def test_rows_of_a_language_model_are_shortened_for_that(tmp_path):
    """Two whole rows can take more memory than a step, which is divided into micro-batches."""
    task = make_task(TaskConfig(type="text-generation"))
    spec = ModelConfig(config=llama(), tokenizer=str(save_bytes_tokenizer(tmp_path)))
    opened = open_model(spec, task, "student.model")
    model, tokenizer = load_model(opened, 0, opened.processor), opened.processor
    rows = task.encode({"prompt": ["a" * 40, "b"], "completion": ["c" * 20, "d"]}, tokenizer, True)
    batch = task.collate(shortened(rows, 16), tokenizer)
    assert batch.inputs["input_ids"].shape == (2, 16)
    assert tokenizer.decode(task.true_classes(batch)[:, 0]) == "a<end>", "the last token of each"
    assert freeze_unused(model, task, batch, DistContext(), "float32", "x") == []


def test_models_that_drop_layers_are_known():
    """Their unused parameters change from step to step, so none can be frozen for good."""
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    sizes |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "vocab_size": 16, "model_type": "bart"}
    for layerdrop, expected in ((0.0, False), (0.1, True)):
        config = transformers.AutoConfig.for_model(**sizes, encoder_layerdrop=layerdrop)
        assert _drops_layers(transformers.AutoModelForSequenceClassification.from_config(config)) is expected
