"""Whether what is kept of the logits (`logits.keep`) is enough for the method. Importable without torch or Ray."""

from typing import TYPE_CHECKING, Any

from raykd.common.dotted import is_dotted
from raykd.common.errors import ConfigError
from raykd.config.methods import TEACHERLESS
from raykd.config.parameter import read_parameter
from raykd.config.services import TopKConfig

if TYPE_CHECKING:
    from raykd.config.schema import Config

_ONE = {"temperature": 1, "pool": "probabilities", "divergence": "forward_kl"}  # of {top_k: K}
_REASONS = {
    "temperature": "at another one the classes that are not kept weigh so much that the gradient points elsewhere",
    "pool": "the mean of logits needs every teacher's logit of every class",
    "divergence": "the others need every class",
}


def for_largest(job: Any) -> Any:
    """A job before it is validated. With `logits.keep: {top_k: K}` the presets have the only T and pool that it serves.

    What the user sets stays.
    """
    logits = job.get("logits") if isinstance(job, dict) else None
    keep = logits.get("keep") if isinstance(logits, dict) else None
    if not isinstance(keep, TopKConfig) and not (isinstance(keep, dict) and "top_k" in keep):
        return job
    method = job.get("method")
    method = {"type": method} if isinstance(method, str) else {} if method is None else method
    if not isinstance(method, dict) or method.get("type") in TEACHERLESS:
        return job
    return {**job, "method": {"temperature": 1.0, "pool": "probabilities", **method}}


def check_kept(config: "Config") -> None:
    """Raise ConfigError if the method needs logits that are not kept."""
    keep, tokens = config.logits.keep, config.task.predicts_tokens
    if not tokens:
        if keep not in ("auto", "all"):
            reason = f"it is for text-generation, and every logit of {config.task.type} is kept"
            raise ConfigError("logits.keep", _shown(keep), reason, "Remove it")
        return
    if config.method.average_generations:
        reason = "text-generation does not keep the logits of earlier generations on validation and test"
        raise ConfigError("method.average_generations", True, reason, "Remove it")
    _check_own_weighting(config)
    if keep in ("auto", "hidden"):
        for teacher in config.teachers:
            if teacher.folds > 1:
                reason = f"hidden states belong to one head, and teacher {teacher.name} has {teacher.folds} fold models"
                hint = "Set logits.keep to all or {top_k: 64}, or remove folds"
                raise ConfigError("logits.keep", keep, reason, hint)
    if isinstance(keep, TopKConfig):
        _check_top_k(config, keep)


def _check_own_weighting(config: "Config") -> None:
    """The scores that are kept of a packed decision serve raykd's own weightings alone."""
    key, space = "method.weighting", config.search.space
    drawn = read_parameter(key, space[key]).values if key in space else ()
    for value in (config.method.weighting, *drawn):
        if is_dotted(str(value)) and config.method.distils and config.logits.keep != "all":
            reason = f"it needs every logit, which logits.keep = {_shown(config.logits.keep)} does not keep"
            hint = "Set logits.keep=all, which suits small vocabularies, or use another weighting"
            raise ConfigError(key, value, reason, hint)


def _check_top_k(config: "Config", keep: TopKConfig) -> None:
    hint = "Set logits.keep=hidden, or "
    for name, needed in _ONE.items():
        key, reason = f"method.{name}", f"logits.keep = {_shown(keep)} needs {needed}: {_REASONS[name]}"
        value = getattr(config.method, name)
        if config.method.distils and value != needed and key not in config.search.space:
            raise ConfigError(key, value, reason, f"{hint}{key}={needed}")
        drawn: Any = config.search.space.get(key, [needed])
        if drawn != [needed] and drawn != {"grid": [needed]}:
            raise ConfigError(f"search.space.{key}", drawn, reason, f"{hint}search.space.{key}=[{needed}]")


def _shown(keep: Any) -> Any:
    return f"{{top_k: {keep.top_k}}}" if isinstance(keep, TopKConfig) else keep
