"""How one model is trained by one process or by several: what differs between them."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raykd.common.ranks import DistContext
from raykd.models.lora import load_own_state, own_state
from raykd.models.prediction import autocast
from raykd.tasks import Batch, Task

log = logging.getLogger(__name__)
_NAMED = 5  # in the log, of the parameters that are frozen


class Parallel:
    """One process that holds the whole model. What several processes do differently, they override.

    Freeze parameters before you create it.

    model: as it is evaluated and saved.
    forward: as it is called in a training step.
    """

    forward: torch.nn.Module

    def __init__(self, model: torch.nn.Module, context: DistContext) -> None:
        self.model, self.forward, self.context = model, model, context
        # Listed once, because walking all modules takes 0.3 ms for MiniLM.
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Around the passes of one micro-batch. last: of its step, whose gradients are then those of all workers."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """loss: this worker's share; the workers' shares add up."""
        loss.backward()

    def clip(self, max_norm: float) -> torch.Tensor:
        """The gradients' norm before they are clipped: float64, on the device."""
        return torch.nn.utils.clip_grad_norm_(self._trained, max_norm).double()

    def equalize_buffers(self) -> None:
        """Called before an evaluation: all workers must evaluate the model that is saved."""

    def state(self) -> dict[str, torch.Tensor]:
        return own_state(self.model)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        load_own_state(self.model, state)


class DataParallel(Parallel):
    """DistributedDataParallel: every worker holds the whole model and trains on its share of each step's rows.

    All workers must run the same number of micro-batches, because each of them waits for the others' gradients.
    """

    forward: DistributedDataParallel

    def __init__(self, model: torch.nn.Module, context: DistContext) -> None:
        super().__init__(model, context)
        devices = [context.device] if context.device.type == "cuda" else None
        self.forward = DistributedDataParallel(model, device_ids=devices, find_unused_parameters=_drops_layers(model))

    def accumulate(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.forward.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.context.world).backward()  # it averages gradients over the workers; the objective is a sum

    def equalize_buffers(self) -> None:
        """Give all workers the first one's buffers.

        BatchNorm's running statistics are each worker's own after a step. The first worker's are those that count:
        DistributedDataParallel starts every step from them, and they are in the checkpoint. A mean over the workers
        would differ from both.
        """
        with self.context.named("the first worker's buffers"):
            for buffer in self.model.buffers():
                first = buffer.contiguous()
                dist.broadcast(first, 0)
                if first is not buffer:
                    buffer.copy_(first)


def parallelize(
    model: torch.nn.Module, task: Task, example: Batch, context: DistContext, dtype: str, name: str
) -> Parallel:
    """The model as `context.world` processes train it. Make its optimizer afterwards: parameters may be frozen.

    example: some rows of this training, the same ones on every worker.
    name: the training's, for the log.
    """
    if context.world == 1:
        return Parallel(model, context)
    freeze = partial(freeze_unused, model, task, example, context, dtype, name)
    context.together(freeze, "looking for unused parameters")
    return DataParallel(model, context)


def freeze_unused(
    model: torch.nn.Module, task: Task, batch: Batch, context: DistContext, dtype: str, name: str
) -> list[str]:
    """Freeze the parameters that the decisions do not depend on. Returns their names and logs them.

    DINOv2's mask token and one of CLIP's norms are such. DistributedDataParallel would wait for their gradients.
    AdamW leaves a parameter without a gradient alone, weight decay included, so freezing changes no number.

    batch: rows of this training, the same ones on every worker, so that all workers freeze the same.
    name: the training's, for the log.
    """
    model.eval()  # no dropout, and no running statistics are changed
    batch = batch.to(context.device)
    with autocast(context.device, dtype):
        decisions = task.decisions(model(**batch.inputs), batch)
    decisions.float().sum().backward()
    unused = [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
    model.zero_grad(set_to_none=True)
    if unused and context.is_main:
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        log.warning("%s: no gradient reaches %s%s: frozen", name, ", ".join(unused[:_NAMED]), more)
    return unused


def _drops_layers(model: torch.nn.Module) -> bool:
    """Whether whole layers are left out at random, so that at each step other parameters get no gradient."""
    settings = [item for config in _configs(model.config) for item in vars(config).items()]
    return any(isinstance(value, float) and value > 0 for name, value in settings if "layerdrop" in name)


def _configs(config: object) -> Iterator[object]:
    yield config
    for part in vars(config).values():
        if hasattr(part, "to_diff_dict"):
            yield from _configs(part)
