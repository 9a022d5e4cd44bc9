"""The results of a training: a plain Hugging Face folder with a model card, the scores and the predictions."""

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raykd import __version__
from raykd.common.atomic import new_file, new_folder, write_atomically
from raykd.common.intervals import interval
from raykd.common.output_files import RESULT
from raykd.common.proof import proof_of
from raykd.common.redaction import redact, scrub
from raykd.common.units import shown_size
from raykd.config.models import LoraConfig
from raykd.models.decoding import note_end_tokens
from raykd.models.folders import write_about
from raykd.models.lora import parameters, save_weights
from raykd.models.serving_cost import size_on_disk
from raykd.plan.job import CARD, Job, model_name, shown_source
from raykd.tasks import Evaluation
from raykd.training.checkpoint import BEST, CHECKPOINT

# The hub's name, where it is not the task's.
_PIPELINES = dict.fromkeys(("multi-label-classification", "regression"), "text-classification")


def save_model(
    folder: Path,
    model: torch.nn.Module,
    processor: Any,
    job: Job,
    generation: int,
    scored: dict[str, Evaluation],
    primary_metric: str,
) -> None:
    """A folder that `AutoModelFor...from_pretrained` loads, with its tokenizer or image processor."""
    shutil.rmtree(folder, ignore_errors=True)  # left by an earlier try, which has no result
    with new_folder(folder) as draft:
        save_weights(model, draft, job.lora, job.model.pretrained, job.model.revision)
        if job.task.kind == "text-generation":
            note_end_tokens(draft, model, processor)
        processor.save_pretrained(draft)
        settings, columns = job.task.model_dump(exclude_defaults=True), job.metadata.get("columns", {})
        write_about(draft, settings, scored["validation"].calibration, columns)
        written, counts = size_on_disk(draft), parameters(model)
        (draft / CARD).write_text(model_card(job, generation, scored, primary_metric, counts, written))


def model_card(
    job: Job,
    generation: int,
    scored: dict[str, Evaluation],
    primary_metric: str,
    counts: tuple[int, int],
    bytes_written: int,
) -> str:
    """The model's README: its teachers, method, size and scores, that of the primary metric with its interval.

    counts: how many parameters it has, and how many of them, or of its adapter, are trained.
    """
    names = [n for n in scored["test"].metrics if n in scored["validation"].metrics]
    method = {k: v for k, v in job.method.model_dump().items() if job.method.unused(k) is None and v is not None}
    source = ", ".join(job.metadata.get("teachers", [])) if job.method.distils else ""
    if generation > 1:
        source = f"its own generation {generation - 1}"
    start, data = (
        redact(shown_source(job.model.pretrained or "a config, from scratch")),
        redact(job.metadata.get("data")),
    )  # an address can hold a password
    lines = [
        "---",
        f"library_name: {'peft' if job.lora and job.lora.save == 'adapter' else 'transformers'}",
        *([f"pipeline_tag: {_PIPELINES.get(job.task.kind, job.task.kind)}"] if job.task.kind else ()),
        "tags: [raykd, knowledge-distillation]",
        "---",
        f"# {job.metadata.get('title', job.name)}",
        "",
        f"Trained by raykd {__version__} with the method `{job.method.type}`"
        + (f", distilled from {source}." if source else ", without teachers."),
        "",
        f"- started from: {start}",
        f"- data: {data or 'see the run'}",
        f"- seed {job.seed}, {job.steps} optimizer steps of {job.training.batch_size} rows, "
        f"peak learning rate {job.training.learning_rate:g}",
        f"- method: {', '.join(f'{k} = {v}' for k, v in method.items())}",
        f"- size: {counts[0]:,} parameters, {shown_size(bytes_written)} on disk",
        *([f"- LoRA: {_listed(job.lora)}; {counts[1]:,} parameters were trained"] if job.lora else ()),
        f"- {primary_metric} on test: {_with_interval(scored['test'], primary_metric)}",
        "",
        "| metric | validation | test |",
        "| --- | ---: | ---: |",
        *(f"| {n} | {scored['validation'].metrics[n]:.4f} | {scored['test'].metrics[n]:.4f} |" for n in names),
    ]
    return scrub("\n".join(lines) + "\n")


def _listed(lora: LoraConfig) -> str:
    targets = ", ".join(lora.target_modules or ("all linear layers",))
    saved = "this is the adapter alone" if lora.save == "adapter" else "merged"
    return f"r = {lora.r}, alpha = {lora.alpha:g}, dropout = {lora.dropout:g} on {targets}, {saved}"


def _with_interval(evaluation: Evaluation, metric: str) -> str:
    row_groups = [row.get("context") for row in evaluation.predictions]
    alone = None in row_groups
    low, high = interval(evaluation.scores, None if alone else row_groups)
    if math.isnan(low):
        return f"{evaluation.metrics[metric]:.4f} (over {len(row_groups)} examples)"
    text = f"{evaluation.metrics[metric]:.4f} (95% interval {low:.4f} to {high:.4f}, over {len(row_groups)} examples"
    return f"{text}, taken as independent)" if alone else f"{text}, grouped by their context)"


def save_result(
    job: Job,
    primary_metric: str,
    generations: list[dict[str, Evaluation]],
    best: int,
    average: dict[str, Evaluation] | None,
    seconds: float,
    dtype: str,
    gpus: float,
) -> None:
    """Save the scores of every generation and the best one's predictions, and then delete the checkpoints.

    `result.json` is written after everything else, because its existence means that the training is complete.

    primary_metric: the task's.
    generations: each one's evaluations, by split. A job whose model is not kept has no "test" and no saved model.
    best: index of the generation whose predictions and model are the result.
    average: of the generations' average, by split; None if the method has none.
    seconds: that the training took.
    dtype: of its forward passes.
    gpus: that it has held.
    """
    written = [job.folder / "scores.npz"]
    for split, evaluation in generations[best].items():
        with (
            new_file(job.folder / f"predictions-{split}.jsonl.gz") as draft,
            gzip.open(draft, "wt", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
        written.append(job.folder / f"predictions-{split}.jsonl.gz")
    scores = {split: evaluation.scores for split, evaluation in generations[best].items()}
    scores |= {f"test_generation_{i + 1}": g["test"].scores for i, g in enumerate(generations) if "test" in g}
    with new_file(job.folder / "scores.npz") as draft, draft.open("xb") as whole:
        np.savez(whole, **scores)  # type: ignore[arg-type]
    if job.keep_model:
        written += [path for i in range(len(generations)) for path in (job.folder / model_name(i)).iterdir()]
        written = [path for path in written if path.name != CARD]  # it gets the latency later
    result = {
        "generations": [_metrics(scored) for scored in generations],
        "best": best,
        "average": _metrics(average) if average else None,
        "headline": primary_metric,
        "seconds": seconds,
        "dtype": dtype,
        "gpus": gpus,
        "model": model_name(best),  # relative, because the store can be moved or mounted elsewhere
        "files": proof_of(job.folder, written),
    }
    write_atomically(job.folder / RESULT, json.dumps(result, indent=1).encode())
    for name in (CHECKPOINT, BEST):  # no longer needed
        for path in job.folder.glob(f"generation-*/{name}"):
            path.unlink()


def _metrics(scored: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """By split, then by name."""
    return {split: evaluation.metrics for split, evaluation in scored.items()}
