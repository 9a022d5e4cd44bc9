"""What a training leaves: a plain Hugging Face folder with its card, its scores and its predictions."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raykd import __version__
from raykd.common.atomic import new_file, new_folder, write_atomically
from raykd.common.proof import proof_of
from raykd.common.redaction import redact, scrub
from raykd.plan.job import RESULT, Job, model_name, shown_source
from raykd.tasks import Evaluation
from raykd.training.checkpoint import BEST, CHECKPOINT


def save_model(
    folder: Path,
    model: torch.nn.Module,
    processor: Any,
    job: Job,
    generation: int,
    scored: dict[str, Evaluation],
) -> None:
    """A folder that `AutoModelFor...from_pretrained` loads, with its tokenizer or image processor."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier try, which has no result
    with new_folder(folder) as draft:
        model.save_pretrained(draft)  # type: ignore[operator]
        processor.save_pretrained(draft)
        (draft / "README.md").write_text(model_card(job, generation, scored))


def model_card(job: Job, generation: int, scored: dict[str, Evaluation]) -> str:
    """What the model was distilled from, how, and how it scored."""
    names = [n for n in scored["test"].metrics if n in scored["validation"].metrics]
    method = {k: v for k, v in job.method.model_dump().items() if job.method.unused(k) is None and v is not None}
    source = ", ".join(job.metadata.get("teachers", [])) if job.method.distils else ""
    if generation > 1:
        source = f"its own generation {generation - 1}"
    start, data = (
        redact(shown_source(job.model.pretrained or "a config, from scratch")),
        redact(job.metadata.get("data")),
    )  # an address may hold a password
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {job.task.type}",
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
        "",
        "| metric | validation | test |",
        "| --- | ---: | ---: |",
        *(f"| {n} | {scored['validation'].metrics[n]:.4f} | {scored['test'].metrics[n]:.4f} |" for n in names),
    ]
    return scrub("\n".join(lines) + "\n")


def save_result(
    job: Job,
    headline: str,
    generations: list[dict[str, Evaluation]],
    best: int,
    average: dict[str, Evaluation] | None,
    seconds: float,
) -> None:
    """Scores of every generation, the best one's predictions. `result.json` says that all is there: it comes last,
    and only then goes what it makes needless.

    generations: by split; a job whose model is not kept has no "test", and no saved model.
    """
    written = [job.folder / "scores.npz"]
    for split, found in generations[best].items():
        with new_file(job.folder / f"predictions-{split}.jsonl.gz") as draft, gzip.open(draft, "wt") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.predictions)
        written.append(job.folder / f"predictions-{split}.jsonl.gz")
    scores = {split: found.scores for split, found in generations[best].items()}
    scores |= {f"test_generation_{i + 1}": g["test"].scores for i, g in enumerate(generations) if "test" in g}
    with new_file(job.folder / "scores.npz") as draft, draft.open("xb") as whole:
        np.savez(whole, **scores)  # type: ignore[arg-type]
    if job.keep:
        written += [path for i in range(len(generations)) for path in (job.folder / model_name(i)).iterdir()]
    result = {
        "generations": [{split: found.metrics for split, found in scored.items()} for scored in generations],
        "best": best,
        "average": {split: found.metrics for split, found in average.items()} if average else None,
        "headline": headline,
        "seconds": seconds,
        "model": model_name(best),  # relative, for the store may be moved or mounted elsewhere
        "files": proof_of(job.folder, written),
    }
    write_atomically(job.folder / RESULT, json.dumps(result, indent=1).encode())
    for used_up in (CHECKPOINT, BEST):  # the model is saved beside them
        for path in job.folder.glob(f"generation-*/{used_up}"):
            path.unlink()
