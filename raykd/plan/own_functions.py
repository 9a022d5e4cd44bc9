"""The user's own weightings and divergences (`method.weighting: my_module:name`): their code, and a check of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from importlib.metadata import version
from operator import or_
from typing import TYPE_CHECKING

from raykd.common.dotted import is_dotted
from raykd.common.late import Late
from raykd.common.own_code import OwnCode, read_code
from raykd.config.methods import OWN_FUNCTIONS, Method
from raykd.config.parameter import read_parameter
from raykd.config.schema import Config
from raykd.data.encoding import Encoded
from raykd.models.inputs import input_columns
from raykd.models.opened import OpenedModel
from raykd.plan.checked import check_once
from raykd.tasks import Batch, Task

if TYPE_CHECKING:
    import torch

    from raykd.distillation import decisions, own
else:
    torch, own, decisions = Late("torch"), Late("raykd.distillation.own"), Late("raykd.distillation.decisions")

_VERSION = 1  # increase it when a check is added
_TOKENS = 8  # of a language model's row, which has C logits each


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """(key, `module:name`) of every function that the method or the search space names."""
    yield from config.method.own_functions.items()
    for key in OWN_FUNCTIONS:
        if key in config.search.space:
            values = read_parameter(key, config.search.space[key]).values
            yield from ((key, path) for path in values if is_dotted(str(path)))


def code_by_function(config: Config) -> dict[str, OwnCode]:
    """The code of every function that the method or the search space names, by `module:name`. Raises ConfigError."""
    return {path: read_code({key: path}) for key, path in _named(config)}


def code_of(method: Method, code: dict[str, OwnCode]) -> OwnCode:
    """The code that a training with this method needs."""
    return reduce(or_, (code[path] for path in method.own_functions.values()), OwnCode())


def check_imported(config: Config) -> None:
    """Raise ConfigError if a function cannot be imported. Imports it, which can take seconds, only the first time."""
    for key, path in _named(config):
        code = read_code({key: path})

        def check(key: str = key, path: str = path, code: OwnCode = code) -> None:
            code.install()
            own.OwnFunction.named(path, key)

        check_once(config.store, ["own function", _VERSION, key, path, code.digest], check)


def check_results(config: Config, task: Task, student: OpenedModel, train: Encoded) -> None:
    """Raise ConfigError if a function fails or returns something invalid, for random logits of two training rows.

    train: the training rows as encoded for the student.
    """
    teachers = 1 if config.method.teacher else len(config.teachers)
    for key, path in _named(config):
        code = read_code({key: path})
        identity = ["own results", _VERSION, key, path, code.digest, teachers, train.digest, task.label_names]

        def check(key: str = key, path: str = path, code: OwnCode = code) -> None:
            code.install()
            rows = input_columns(train.open(), task)[:2]
            batch, classes = task.collate(rows, student.processor), int(task.shapes(rows)[:, 1].max())
            function = own.OwnFunction.named(path, key)
            if key == "method.weighting":
                _check_weighting(function, task, batch, (teachers, classes))
            else:
                _check_divergence(function, task, batch, classes)

        check_once(config.store, [*identity, version("torch")], check)


def _check_weighting(function: own.OwnFunction, task: Task, batch: Batch, size: tuple[int, int]) -> None:
    """size: teachers, classes."""
    labels, mask = _some_decisions(task, batch)
    logits = _random(size[0], *labels.shape, size[1])
    own.own_weights(function, logits, labels, mask)


def _check_divergence(function: own.OwnFunction, task: Task, batch: Batch, classes: int) -> None:
    labels, mask = _some_decisions(task, batch)
    exists = decisions.existing_decisions(labels.shape, mask, labels.device)
    logits = _random(2, *labels.shape, classes)
    if task.predicts_tokens:  # whose loss goes over decisions alone, without rows
        logits, mask, exists = logits[:, exists], None, torch.ones(int(exists.sum()), dtype=torch.bool)
    student = logits[1].requires_grad_()
    log_p, log_q = (
        torch.log_softmax(decisions.fill_masked(each, mask, decisions.MASKED_LOGIT), -1)
        for each in (logits[0], student)
    )
    found = own.own_divergence(function, log_p, log_q)
    hint = "Compute it from log_q with differentiable operations of torch"
    if not found.requires_grad:
        raise function.error("its result does not depend on log_q, so the student would learn nothing from it", hint)
    try:
        [gradient] = torch.autograd.grad(found.masked_fill(~exists, 0).sum(), student)
    except RuntimeError as error:
        raise function.error(f"its gradient cannot be computed ({error})", hint) from None
    if not gradient.isfinite().all():
        raise function.error("its gradient is not finite", "Avoid log(0), 0 / 0 and infinities")


def _some_decisions(task: Task, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels and mask, of a few tokens where there are C logits of each."""
    if not task.predicts_tokens or batch.mask is None:
        return batch.labels, batch.mask
    return batch.labels[:, :_TOKENS], batch.mask[:, :_TOKENS]


def _random(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
