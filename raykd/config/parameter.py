"""One key of the search space and its possible values. Importable without torch or Ray."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

RANGES = ("uniform", "log_uniform", "integers")
_WRITTEN = (
    "a list of choices, {uniform: [low, high]}, {log_uniform: [low, high]}, {integers: [low, high]}, {grid: [...]}"
)


@dataclass(frozen=True)
class Parameter:
    """A key that a sweep searches.

    key: of the config, dotted.
    kind: choice, grid or one of RANGES.
    values: the choices, or (low, high).
    whole: whether the key takes whole numbers alone, so that draws are rounded.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    whole: bool = False

    @property
    def finite(self) -> bool:
        return self.kind not in RANGES

    @property
    def every(self) -> tuple[Any, ...] | None:
        """All values, if there are finitely many; None for ranges of real numbers."""
        if self.kind == "integers":
            return tuple(range(self.values[0], self.values[1] + 1))
        return self.values if self.finite else None

    def draw(self, rng: np.random.Generator) -> Any:
        if self.finite:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integers":
            return int(rng.integers(low, high + 1))
        if self.kind == "log_uniform":
            return self._short(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self._short(rng.uniform(low, high))

    def suggest(self, trial: Any) -> Any:
        """The same from an Optuna trial. Choices are numbered, because they can be of any type."""
        if self.finite:
            return self.values[trial.suggest_categorical(self.key, list(range(len(self.values))))]
        low, high = self.values
        if self.kind == "integers":
            return trial.suggest_int(self.key, low, high)
        return self._short(trial.suggest_float(self.key, low, high, log=self.kind == "log_uniform"))

    def as_optuna(self, optuna: Any, value: Any) -> tuple[Any, Any]:
        """A value that was drawn before, and its distribution, in the form that `suggest` uses."""
        kinds = optuna.distributions
        if self.finite:
            return self.values.index(value), kinds.CategoricalDistribution(list(range(len(self.values))))
        low, high = self.values
        if self.kind == "integers":
            return value, kinds.IntDistribution(low, high)
        return value, kinds.FloatDistribution(low, high, log=self.kind == "log_uniform")

    def of_whole_numbers(self) -> Parameter:
        """The same for a key that takes whole numbers. Raises ConfigError if there is none in the range."""
        if self.kind not in ("uniform", "log_uniform"):
            return self
        low, high = math.ceil(self.values[0]), math.floor(self.values[1])
        if low >= high:
            reason = f"{self.key} takes whole numbers, of which there are not two in this range"
            raise ConfigError(f"search.space.{self.key}", {self.kind: list(self.values)}, reason, "Widen the range")
        if self.kind == "uniform":
            return Parameter(self.key, "integers", (low, high))
        return Parameter(self.key, self.kind, (low, high), whole=True)

    def _short(self, value: float) -> float:
        """Round to four digits, so that a person can read and retype the value."""
        low, high = self.values
        if self.whole:
            return min(max(round(value), low), high)
        return min(max(float(f"{value:.4g}"), low), high)


def read_parameter(key: str, given: Any) -> Parameter:
    """Parse an entry of `search.space`. Raises ConfigError if it is invalid for every key."""

    def error(reason: str, hint: str) -> ConfigError:
        return ConfigError(f"search.space.{key}", given, reason, hint)

    kind, values = "choice", given
    if isinstance(given, dict):
        if len(given) != 1 or (kind := str(next(iter(given)))) not in ("choice", "grid", *RANGES):
            raise error("it is not one way to draw values", f"Write {_WRITTEN}")
        values = given[kind]
    if not isinstance(values, list):
        raise error("it is one value, which cannot be searched", f"Write {_WRITTEN}, or set {key} itself")
    if kind not in RANGES:
        values = [_number(value) for value in values]
        if not values:
            raise error("there is nothing to choose from", "Give at least one value, or remove the key")
        if any(values.index(v) != i for i, v in enumerate(values)):
            raise error("a value is given twice", "Give each value once")
        return Parameter(key, kind, tuple(values))
    values = [_number(value) for value in values]
    number = int if kind == "integers" else (int, float)
    if len(values) != 2 or not all(isinstance(v, number) and not isinstance(v, bool) for v in values):
        noun = "whole numbers" if kind == "integers" else "numbers"
        raise error(f"{kind} needs two {noun}", f"Write {{{kind}: [low, high]}}")
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise error("the first number is not below the second", f"Write {{{kind}: [low, high]}}")
    if kind == "log_uniform" and low <= 0:
        raise error("a logarithm needs numbers above 0", "Raise the lower bound, or use uniform")
    return Parameter(key, kind, (low, high))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5, which has no point, as a text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value
