"""The objective of a language model: as in `objective.py`, from what is kept of the teachers' logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from raykd.common.transfer import places, to_device
from raykd.config.methods import Method
from raykd.distillation import DistillationLoss, TeacherWeights, alpha_at, teacher_weights
from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.own import function_or_name
from raykd.distillation.packed import read_hidden, read_scores, read_top_k
from raykd.distillation.taught import Hidden
from raykd.distillation.weighting import weights_of
from raykd.logits import LogitStore, TeacherKey
from raykd.logits.heads import head_on
from raykd.logits.keep import Keep
from raykd.models.kept_logits import matmul_head
from raykd.models.language import States
from raykd.tasks import NO_LABEL, Batch
from raykd.training.agreement import Counts
from raykd.training.loader import MicroBatch
from raykd.training.objective import counts_of


@dataclass(frozen=True)
class TokenTargets:
    """What a micro-batch of D decisions is taught, on the device.

    at: (D,) int64, where they are among the B * H places.
    labels: (D,) int64.
    taught: moves it to the device, when the micro-batch's turn comes: a step's states can be gigabytes. None where
        nothing is distilled.
    classes: C.
    """

    batch: Batch
    at: torch.Tensor
    labels: torch.Tensor
    taught: Callable[[], Taught] | None
    classes: int
    counts: Counts


@dataclass(frozen=True)
class TokenObjective:
    """A method over a planned number of optimizer steps.

    keep: what is kept of the teachers' logits.
    sources: the store and the key of each teacher.
    """

    method: Method
    steps: int
    keep: Keep
    sources: Sequence[tuple[LogitStore, TeacherKey]]

    def alpha(self, step: int) -> float:
        """The weight of the teachers' term in step 0..steps-1."""
        return alpha_at(step / self.steps, self.method.alpha, self.method.schedule, self.method.floor)

    def targets(self, micro_batch: MicroBatch, device: torch.device) -> TokenTargets:
        """Weights and counts are computed on the host; logits only in the loss, a chunk of decisions at a time."""
        batch, method = micro_batch.batch, self.method
        assert batch.mask is not None
        exists, classes = batch.mask[..., 0], batch.mask.shape[-1]
        labelled, none = batch.labels != NO_LABEL, torch.zeros((), dtype=torch.int64)
        taught, counts = None, Counts(none, labelled.sum(), none, none)
        if micro_batch.logits is not None:
            weights, distill = self._weigh(micro_batch.logits, batch, exists)
            counts = counts_of(weights, distill, labelled, method.weighting)
            if self.keep.form == "hidden":  # here, where all workers learn of one's error
                for store, key in self.sources:
                    head_on(store, key, str(device))
            taught = partial(self._taught, micro_batch.logits, weights, distill, exists, device)
        labels, moved = to_device(batch.labels[exists], device), replace(batch, mask=None).to(device)
        return TokenTargets(moved, places(exists, device), labels, taught, classes, counts)

    def loss(self, outputs: States, targets: TokenTargets, counts: Counts, alpha: float) -> DistillationLoss:
        """This micro-batch's share of the step's loss. counts: of the whole step."""
        method = self.method
        settings = Settings(
            alpha,
            method.temperature,
            method.scale_by_t2,
            method.epsilon,
            function_or_name(method.divergence, "method.divergence"),
            method.beta,
            method.pool,
        )
        return chunked_loss(
            outputs.states.flatten(0, 1).index_select(0, targets.at),
            matmul_head(outputs.head),
            list(outputs.head.module.parameters()),
            targets.labels,
            targets.taught() if targets.taught and alpha > 0 else None,
            settings,
            (counts.distilled, counts.labelled),
            targets.classes,
        )

    def _weigh(self, kept: torch.Tensor, batch: Batch, exists: torch.Tensor) -> TeacherWeights:
        """kept: (M, B, H, F) of the teachers."""
        method, labels = self.method, batch.labels
        if not self.keep.packed:
            return teacher_weights(
                kept,
                labels,
                batch.mask,
                weighting=function_or_name(method.weighting, "method.weighting"),
                W=method.W,
                all_wrong=method.all_wrong,
                correct_by=method.correct_by,
                weight_temperature=method.weight_temperature,
            )
        scores = read_scores(kept)
        wrong = (scores.choice != labels) & (labels != NO_LABEL)
        evidence = scores.log_likelihood if method.weighting == "likelihood" else -scores.entropy
        return weights_of(
            len(kept),
            exists,
            labels,
            wrong=wrong,
            evidence=evidence,
            weighting=method.weighting,
            W=method.W,
            all_wrong=method.all_wrong,
            correct_by=method.correct_by,
            weight_temperature=method.weight_temperature,
        )

    def _taught(
        self,
        logits: torch.Tensor,
        weights: torch.Tensor,
        distill: torch.Tensor,
        exists: torch.Tensor,
        device: torch.device,
    ) -> Taught:
        """logits: (M, B, H, F), like the others on the host. Each teacher's part is read when a chunk's turn comes."""
        kept = to_device(logits[:, exists], device)  # (M, D, F)
        weights, distill = to_device(weights[:, exists], device), to_device(distill[exists], device)
        if self.keep.form == "top_k":
            return Taught(weights, distill, top_k=[partial(_top_k_of, each) for each in kept])
        if self.keep.form == "all":
            return Taught(weights, distill, [each.__getitem__ for each in kept])
        heads = [head_on(store, key, str(kept.device)) for store, key in self.sources]
        states = [partial(_states_of, each, head.weight.shape[1]) for each, head in zip(kept, heads, strict=True)]
        return Taught(weights, distill, hidden=[Hidden(*each) for each in zip(heads, states, strict=True)])


def _top_k_of(kept: torch.Tensor, part: slice) -> Any:
    return read_top_k(kept[part])


def _states_of(kept: torch.Tensor, width: int, part: slice) -> torch.Tensor:
    return read_hidden(kept[part], width)
