"""One model on several workers: what DistributedDataParallel needs to know, and what it does not keep equal."""

import logging
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raykd.common.ranks import DistContext
from raykd.models.prediction import autocast
from raykd.tasks import Batch, Task

log = logging.getLogger(__name__)
_NAMED = 5  # in the log, of the parameters that are frozen


def make_parallel(model: torch.nn.Module, ranks: DistContext) -> torch.nn.Module:
    """The model as the workers train it together; with one worker, the model itself."""
    if ranks.world == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=_drops_layers(model))


def freeze_unused(
    model: torch.nn.Module, task: Task, batch: Batch, ranks: DistContext, dtype: str, name: str
) -> list[str]:
    """Freeze the parameters that the decisions do not depend on. Returns their names and logs them.

    DINOv2's mask token and one of CLIP's norms are such. DistributedDataParallel would wait for their gradients.
    AdamW leaves a parameter without a gradient alone, weight decay included, so freezing changes no number.

    batch: rows of this training, the same ones on every worker, so that all workers freeze the same.
    name: the training's, for the log.
    """
    model.eval()  # no dropout, and no running statistics are changed
    batch = batch.to(ranks.device)
    with autocast(ranks.device, dtype):
        decisions = task.decisions(model(**batch.inputs), batch)
    decisions.float().sum().backward()
    unused = [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
    model.zero_grad(set_to_none=True)
    if unused and ranks.is_main:
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        log.warning("%s: no gradient reaches %s%s: frozen", name, ", ".join(unused[:_NAMED]), more)
    return unused


def equalize_buffers(model: torch.nn.Module, ranks: DistContext) -> None:
    """Give all workers the first one's buffers, so that they evaluate the model that is saved.

    BatchNorm's running statistics are each worker's own after a step. The first worker's are those that count:
    DistributedDataParallel starts every step from them, and they are in the checkpoint. A mean over the workers would
    differ from both.
    """
    if ranks.world == 1:
        return
    with ranks.named("the first worker's buffers"):
        for buffer in model.buffers():
            first = buffer.contiguous()
            dist.broadcast(first, 0)
            if first is not buffer:
                buffer.copy_(first)


def _drops_layers(model: torch.nn.Module) -> bool:
    """Whether whole layers are left out at random, so that at each step other parameters get no gradient."""
    settings = [item for config in _configs(model.config) for item in vars(config).items()]
    return any(isinstance(value, float) and value > 0 for name, value in settings if "layerdrop" in name)


def _configs(config: object) -> Iterator[object]:
    yield config
    for part in vars(config).values():
        if hasattr(part, "to_diff_dict"):
            yield from _configs(part)
