"""One generation of a training: the loop over its steps, and what happens between them."""

import math
import time
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from raykd.data.batches import batch_order
from raykd.logits import StoredLogits
from raykd.models.inputs import input_columns
from raykd.models.prediction import autocast
from raykd.training.agreement import Agreement, Counts
from raykd.training.checkpoint import load_best, load_checkpoint, save_best, save_checkpoint, seed_step
from raykd.training.compiled import compiled, records_graphs, with_repeated_lengths
from raykd.training.evaluation import EvaluationStopped, Predictions, evaluate_split, predict_split, selection_score
from raykd.training.events import EndedEarly, Evaluated, Event, LogitsMissing, Progressed, Resumed, Stopped
from raykd.training.loader import GlobalBatch, StepLoader
from raykd.training.metrics import TrainMetrics
from raykd.training.objective import Objective
from raykd.training.optimization import learning_rate, make_optimizer, not_finite
from raykd.training.parallel import parallelize
from raykd.training.rows import shortened, used_rows
from raykd.training.setup import Setup
from raykd.training.token_objective import TokenObjective
from raykd.training.value_objective import ValueObjective
from raykd.training.waits import Throughput, WaitMeter

_PROGRESS_SECONDS = 1.0
_EXAMPLE_TOKENS = 16  # of the rows in which unused parameters are looked for


class Trainer:
    """The state of one generation.

    step: optimizer steps done.
    best: the best validation score so far, whose weights are saved.
    without_better: evaluations since then.
    best_predictions: of the validation rows, with these weights; None where they come from an earlier process.
    unscored: whether the last step's evaluation is still to be made, because an earlier process was stopped in it.
    """

    def __init__(
        self, setup: Setup, generation: int, seed: int, model: torch.nn.Module, stored: StoredLogits | None
    ) -> None:
        job, context = setup.job, setup.context
        self.setup, self.job, self.context = setup, job, context
        self.generation, self.seed, self.steps = generation, seed, job.steps
        self.folder = job.folder / f"generation-{generation}"
        self.objective: Objective | TokenObjective = Objective(job.method, job.steps)
        if setup.task.predicts_values:
            self.objective = ValueObjective(job.method, job.steps, job.task.tolerance)
        if setup.task.predicts_tokens:
            sources = stored.sources if stored else [(job.logits, teacher.key) for teacher in job.teachers]
            self.objective = TokenObjective(job.method, job.steps, job.keep, sources)
        self.eval_every = job.training.eval_every or math.ceil(job.steps / 5)
        self.positions = used_rows(setup.rows, job.row_subset)
        lengths = np.asarray(setup.rows.select_columns("length")[:]["length"])
        self.lengths, self.throughput = lengths[self.positions], Throughput(lengths)
        two_rows = input_columns(setup.rows, setup.task)[self.positions[:2]]
        if setup.task.predicts_tokens:  # long ones would take more memory than a step, which is cut into micro-batches
            two_rows = shortened(two_rows, _EXAMPLE_TOKENS)
        example = setup.task.collate(two_rows, setup.processor)
        self.parallel = parallelize(model, setup.task, example, context, setup.dtype, job.name)
        self.parallel.forward.train()  # a part of a loaded model can still be in the mode of an evaluation
        self.optimizer = make_optimizer(model, job.training)
        task = setup.task
        if job.training.compile:
            graphs = records_graphs(task, job.training.accumulation, context.device)
            self.parallel.forward = compiled(model, graphs)
            task = with_repeated_lengths(task) if graphs else task
        self.loader = context.together(
            lambda: StepLoader(job, setup.rows, task, setup.processor, seed, stored, context, setup.stop, setup.access),
            "opening its inputs",
        )
        self.wait_meter = WaitMeter(self.loader, job.training.batch_size)
        self.metrics = TrainMetrics(job, setup.rows, self.wait_meter, context.device)
        self.step, self.best, self.without_better = 0, -math.inf, 0
        self.best_predictions: Predictions | None = None
        self.unscored = False

    def run(self) -> Generator[Event, None, Predictions | None]:
        """Train to the end and leave the best weights in the model.

        Returns their predictions on the validation rows; None if it stopped before the end.
        """
        if self.resume():
            yield Resumed(self.generation, self.step, self.steps)
        if self.unscored:
            yield (event := self.evaluate())
            if isinstance(event, Stopped):
                return None
            if self.out_of_patience and self.step < self.steps:
                yield EndedEarly(self.generation, self.step, self.steps)
        if self.step == self.steps or self.out_of_patience:  # it was stopped after its last step
            return self.best_weights()
        reported = time.monotonic()
        self.wait_meter.restart()
        self.throughput.restart()
        for global_batch in self.global_batches():
            agreement, targets = self.agree(global_batch)
            if agreement.stopped or agreement.missing:  # on every worker, so all stop at the same step
                yield self.interrupt(agreement)
                return None
            self.train_step(global_batch, targets, agreement.counts)
            del targets  # so the device has room for the next ones
            if self.step % self.eval_every == 0 or self.step == self.steps:
                yield (event := self.evaluate())
                if isinstance(event, Stopped):
                    return None
                if self.out_of_patience and self.step < self.steps:  # on every worker, as all have the same scores
                    yield EndedEarly(self.generation, self.step, self.steps)
                    break
                reported = time.monotonic()
                self.wait_meter.restart()  # the time of an evaluation does not count
                self.throughput.restart()
            elif time.monotonic() - reported > _PROGRESS_SECONDS and self.metrics.loss is not None:
                reported = time.monotonic()
                yield Progressed(self.generation, self.step, self.steps, self.metrics.loss, self.wait_meter.summary())
        self.context.barrier()
        return self.best_weights()

    @property
    def out_of_patience(self) -> bool:
        patience = self.job.training.patience
        return patience is not None and self.without_better >= patience

    def best_weights(self) -> Predictions:
        """Load them into the model. Returns their predictions on the validation rows."""
        load_best(self.folder, self.parallel.model, self.context)
        if self.best_predictions is None:
            return predict_split(self.setup, "validation", self.parallel.model)
        return self.best_predictions

    def global_batches(self) -> Iterator[GlobalBatch]:
        training = self.job.training
        order = batch_order(self.lengths, training.batch_size, self.seed, training.group_by_length)
        return self.loader.steps(
            self.positions, order, self.step, self.steps, distils=lambda step: self.objective.alpha(step) > 0
        )

    def agree(self, global_batch: GlobalBatch) -> tuple[Agreement, list[Any]]:
        """What this worker's micro-batches are taught, and what all workers agree on before the backward pass.

        A failure of one worker is raised on all of them.
        """
        self.wait_meter.step_begins()
        targets: list[Any] = []
        failure, number = global_batch.failure, global_batch.number + 1
        try:
            targets = [self.objective.targets(part, self.context.device) for part in global_batch.parts]
        except Exception as error:  # perhaps only this worker's, so it is raised once all know of it
            failure = error
        counts = sum((part.counts for part in targets), Counts.zero())
        stopped, missing = (global_batch.interrupted == reason for reason in ("stop", "missing"))
        agreement = Agreement(counts, stopped, missing, failure is not None).of_all(
            self.context, f"the counts of step {number}"
        )
        if agreement.failed:
            self.context.raise_failure(failure, f"the error of step {number}")
        return agreement, targets

    def train_step(self, global_batch: GlobalBatch, targets: list[Any], counts: Counts) -> None:
        """One optimizer step. counts: of all workers and micro-batches."""
        step, parallel, context, task = self.step, self.parallel, self.context, self.setup.task
        tokens = isinstance(self.objective, TokenObjective)  # its logits exist in the loss alone
        seed_step(self.seed, step, context.rank)
        if not parallel.model.training:  # since an evaluation; this goes through all modules, half a millisecond
            parallel.forward.train()
        if self.job.training.compile:
            torch.compiler.cudagraph_mark_step_begin()  # the last step's results have been read or copied
        rate, alpha = learning_rate(step, self.steps, self.job.training), self.objective.alpha(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(3, dtype=torch.float64, device=context.device)
        for i, part in enumerate(targets):
            with parallel.accumulate(last=i == len(targets) - 1):
                with autocast(context.device, self.setup.dtype):
                    outputs = parallel.forward(**part.batch.inputs)
                decided: Any = outputs if tokens else task.decisions(outputs, part.batch)
                terms = self.objective.loss(decided, part, counts, alpha)
                with context.named(f"the gradients of step {step + 1}"):
                    parallel.backward(terms.loss)
                sums += torch.stack([terms.loss.detach(), terms.distillation, terms.label])
        loss, distillation, label = context.all_reduce_sum(sums, f"the loss of step {step + 1}")
        norm = parallel.clip(self.job.training.max_grad_norm)
        numbers = torch.stack([loss, norm, distillation, label])
        if context.device.type == "cuda":  # AdamW itself skips a step that is not finite, before the host knows
            self.optimizer.found_inf = not_finite(loss, norm)  # type: ignore[attr-defined]
        self.metrics.add(step, global_batch.positions, rate, alpha, counts, numbers)
        self.optimizer.step()
        self.wait_meter.step_ends()
        self.throughput.add(global_batch.positions)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def evaluate(self) -> Evaluated | Stopped:
        """Score the validation split and write a checkpoint; keep the weights if they are the best so far.

        If the training is asked to stop during it, the checkpoint says that the evaluation is still to be made.
        """
        setup, model = self.setup, self.parallel.model
        self.metrics.catch_up()  # raises for a step that was not finite, before anything is scored
        rates = self.throughput.rates()
        self.parallel.equalize_buffers()
        try:
            predictions = predict_split(setup, "validation", model, setup.stop)
        except EvaluationStopped:
            self.unscored = True
            return self.stopped()
        self.unscored = False
        score = partial(evaluate_split, self.job, "validation", setup.task, predictions)
        evaluation = self.context.together(score, f"scoring step {self.step}")
        score_now = selection_score(self.job, setup.task, evaluation.metrics)
        if better := score_now > self.best:
            self.best, self.best_predictions = score_now, predictions
        self.without_better = 0 if better else self.without_better + 1
        setup.on_main(partial(self.save, better), f"the checkpoint of step {self.step}")
        waits = self.wait_meter.summary()
        return Evaluated(
            self.generation,
            self.step,
            self.steps,
            evaluation.metrics,
            self.metrics.take(),
            waits,
            setup.stopwatch(),
            rates,
        )

    def interrupt(self, agreement: Agreement) -> Stopped | LogitsMissing:
        stopped = self.stopped()
        if agreement.stopped:
            return stopped
        return LogitsMissing(self.generation, self.step, self.steps, stopped.history)

    def stopped(self) -> Stopped:
        """Write a checkpoint, with which the training ends for now."""
        self.metrics.catch_up()
        self.setup.on_main(self.save, f"the checkpoint of step {self.step}")
        return Stopped(self.generation, self.step, self.steps, self.metrics.take())

    def save(self, better: bool = False) -> None:
        """The checkpoint. better: first the best weights, which are those of now."""
        if better:
            save_best(self.folder, self.parallel.model)
        state = {
            "model": self.parallel.state(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "without_better": self.without_better,
            "unscored": self.unscored,
            "seen": self.metrics.seen,
            "seconds": self.setup.stopwatch(),
        }
        save_checkpoint(self.folder, state)

    def resume(self) -> bool:
        """From the last checkpoint, if there is one."""
        saved = load_checkpoint(self.folder, self.context)
        if saved is None:
            return False
        self.parallel.load(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.metrics.seen = saved["step"], saved["best"], saved["seen"]
        self.without_better = saved.get("without_better", 0)  # an older raykd's has none
        self.unscored = saved.get("unscored", False)
        self.setup.stopwatch.resume(saved.get("seconds", 0.0))  # an older raykd's has none
        return True
