"""What people write where they have no raykd: three ways of training MiniLM, for benchmarks/peers.py. Imports no raykd.

    python benchmarks/peers_contestants.py NAME FOLDER     # one of them, alone in this process

FOLDER is prepared by peers.py: `rows` (tokenized, in the order of the steps), `student`, and teachers `t0` to `t4`.
"""

import inspect
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
import transformers

textbrewer: Any = import_module("textbrewer") if find_spec("textbrewer") else None

ALPHA, T = 0.5, 2.0
BATCH = 32

# What users write, apart from loading data and models. `lines_of` counts these functions. --------------------------


def plain(model: Any, rows: Any, collate: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)


def in_process(model: Any, teachers: list[Any], rows: Any, collate: Any) -> Any:
    class Distilling(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs)
            with torch.no_grad():
                targets = sum(teacher(**inputs).logits for teacher in teachers) / len(teachers)
            divergence = torch.nn.functional.kl_div(
                torch.log_softmax(outputs.logits / T, -1), torch.softmax(targets / T, -1), reduction="batchmean"
            )
            loss = ALPHA * T**2 * divergence + (1 - ALPHA) * outputs.loss
            return (loss, outputs) if return_outputs else loss

    for teacher in teachers:
        teacher.eval()
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Distilling(model=model, args=arguments, train_dataset=rows, data_collator=collate)


def with_textbrewer(model: Any, teachers: list[Any], rows: Any, collate: Any, cached: bool) -> Callable[[], None]:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": (outputs.logits,), "losses": (outputs.loss,)}

    distiller = textbrewer.MultiTeacherDistiller(
        train_config=textbrewer.TrainingConfig(device="cpu", output_dir=tempfile.mkdtemp()),
        distill_config=textbrewer.DistillationConfig(
            temperature=T,
            kd_loss_weight=ALPHA * T**2,
            hard_label_weight=1 - ALPHA,
            kd_loss_type="ce",
            is_caching_logits=cached,
        ),
        model_T=teachers,
        model_S=model,
        adaptor_T=adaptor,
        adaptor_S=adaptor,
    )
    batches = torch.utils.data.DataLoader(rows, BATCH, collate_fn=lambda batch: dict(collate(batch)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup
    steps = {"num_warmup_steps": 0, "num_training_steps": len(batches)}

    def train() -> None:
        with distiller:
            distiller.train(optimizer, batches, 1, scheduler_class=schedule, scheduler_args=steps, max_grad_norm=1.0)

    return train


def lines_of(text: Any) -> int:
    """Lines that are not empty. text: a function, or its text."""
    text = text if isinstance(text, str) else textwrap.dedent(inspect.getsource(text))
    return sum(bool(line.strip()) for line in text.splitlines())


# For the benchmark -------------------------------------------------------------------------------------------------


def work(name: str, folder: Path, losses: list[torch.Tensor] | None = None) -> Callable[[], Any]:
    """A contestant's training, ready to start.

    name: its kind and, after a hyphen, the number of teachers.
    losses: gets each step's, from a Trainer.
    """
    kind, _, count = name.partition("-")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    rows = datasets.load_from_disk(folder / "rows")
    collate = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(folder / "t0"))
    student = load(folder / "student")
    teachers = [load(folder / f"t{i}") for i in range(int(count or 0))]
    if kind.startswith("textbrewer"):
        # Cached batches are shuffled. Here all contestants keep their order, so that steps can be compared in pairs.
        import_module("textbrewer.distiller_basic").random = SimpleNamespace(shuffle=lambda batches: None)  # type: ignore[attr-defined]
        return with_textbrewer(student, teachers, rows, collate, kind == "textbrewer_cached")
    trainer = in_process(student, teachers, rows, collate) if teachers else plain(student, rows, collate)
    trainer.remove_callback(transformers.PrinterCallback)
    if losses is not None:
        known = trainer.compute_loss

        def recording(*given: Any, **named: Any) -> Any:
            loss = known(*given, **named)
            losses.append(loss.detach())
            return loss

        trainer.compute_loss = recording
    return trainer.train


def alone(number: int, name: str, folder: Path) -> None:
    """One training with the loading of its models, on one thread. number: which of several; they are all the same."""
    torch.set_num_threads(1)
    work(name, folder)()


if __name__ == "__main__":
    alone(0, sys.argv[1], Path(sys.argv[2]))
