"""What a sweep searches: the arms (methods and controls), and each one's settings. Without torch or Ray."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.hashing import digest
from raykd.config.load import build, override
from raykd.config.methods import DEFAULT_METHOD, PRESETS, Method
from raykd.config.parameter import Parameter, read_parameter
from raykd.config.schema import Config, TrainingConfig
from raykd.config.search import DEFAULT_TRIALS

log = logging.getLogger(__name__)
Setting = dict[str, Any]  # dotted key -> value
CONTROLS = ("finetune", "label_smoothing")
_STRUCTURE = ("method.weighting", "method.schedule", "method.generations")  # whether others are used depends on these
_DEFINING = ("weighting", "schedule", "generations", "epsilon")  # what makes a method: searched in no other
_MOST_POINTS = 20_000  # a finite space of more points is drawn from as if it were infinite
_ATTEMPTS = 200  # draws of one trial that may all have been drawn before


@dataclass(frozen=True)
class Arm:
    """One way of training that the sweep compares. method: its fixed values. control: it is there in any case."""

    name: str
    method: dict[str, Any]
    control: bool


class Space:
    """Raises ConfigError for a space that makes no sense; nothing has been started then."""

    def __init__(self, config: Config) -> None:
        self.config, self.search = config, config.search
        given = dict(config.search.space)
        types = read_parameter("method.type", given.pop("method.type")).values if "method.type" in given else None
        self.arms = _arms(config, types)
        axes = [read_parameter(_students(key, value), value) for key, value in given.items()]
        for axis in axes:
            if sum(other.key == axis.key for other in axes) > 1:  # training.x and student.training.x
                reason = "it is searched twice: a sweep's training.KEY is student.training.KEY"
                raise ConfigError(f"search.space.{axis.key}", given[axis.key], reason, "Remove one of the two")
        self.axes = sorted(axes, key=lambda a: (a.key not in _STRUCTURE, a.key == "method.floor"))
        self._base = config.model_dump(exclude={"search"})
        for axis in self.axes:
            self._check(axis)
        if len(config.teachers) == 1 and any(_unchecked(arm.method).weighting == "correctness" for arm in self.arms):
            log.warning("weighting = correctness has no effect with one teacher: it is kd, tried twice")
        for arm in self.arms:  # as live logits and generations do not
            self._check_arm(arm)
            self.trials(arm)

    def settle(self, arm: Arm, draw: Callable[[Parameter], Any]) -> Setting:
        """One setting, define-by-run: a key that the arm does not use, given the values before it, is not drawn."""
        chosen: Setting = {}
        preset = _unchecked(arm.method)
        for axis in self.axes:
            section, _, name = axis.key.partition(".")
            if section == "method":
                so_far = {k.removeprefix("method."): v for k, v in chosen.items() if k.startswith("method.")}
                if _unchecked(arm.method | so_far).unused(name):
                    continue
                if name in _DEFINING and getattr(preset, name) == Method.model_fields[name].default:
                    continue  # kd with generations is born_again, which has an arm of its own
                if name == "teacher" and "teacher" in arm.method:
                    continue  # a control that is about one teacher
            chosen[axis.key] = draw(axis)
        return chosen

    def config_of(self, arm: Arm, setting: Setting, seed: int) -> Config:
        """The experiment of one training. Raises ConfigError, as for a job's YAML."""
        values = {"method": dict(arm.method)} | setting | {"student.seed": seed}
        return build(override(self._base, values))

    def points(self, arm: Arm) -> list[Setting] | None:
        """Every setting of the arm, each once; None if there are infinitely many, or as good as that."""
        used = [axis for axis in self.axes if self.uses(arm, axis.key)]
        every = [axis.every for axis in used]
        if None in every or np.prod([len(values or ()) for values in every], dtype=float) > _MOST_POINTS:
            return None
        found: dict[str, Setting] = {}
        for values in itertools.product(*(values for values in every if values is not None)):
            fixed = dict(zip((axis.key for axis in used), values, strict=True))
            setting = self.settle(arm, lambda axis, fixed=fixed: fixed[axis.key])  # type: ignore[misc]
            found.setdefault(canonical(setting), setting)
        return list(found.values())

    def trials(self, arm: Arm) -> int:
        """How many settings the arm tries: as many as every other, unless it has not so many."""
        points = self.points(arm)
        if self.search.algorithm == "grid" and self.search.trials is None:
            if points is None:
                reason = f"the grid of {arm.name} has more than {_MOST_POINTS} points"
                raise ConfigError("search.trials", None, reason, "Say how many of them to try, or list fewer values")
            return len(points)
        most = self.search.trials or DEFAULT_TRIALS
        return most if points is None else min(most, len(points))

    def settings(self, arm: Arm) -> Iterator[Setting]:
        """The arm's settings one after another, no two alike; random and grid search. The same in every process.

        Values that are good alone and not together (a floor above alpha) are no setting.
        """
        rng = self.rng(arm)
        points = self.points(arm)
        if points is not None:  # in an order of their own, so that any first few are spread over the whole
            yield from (points[i] for i in rng.permutation(len(points)) if self.works(arm, points[i]))
            return
        grid = [axis for axis in self.axes if axis.kind == "grid" and self.uses(arm, axis.key)]
        places = list(itertools.product(*(axis.values for axis in grid)))
        seen: set[str] = set()
        in_vain = 0  # places, one after another, of which nothing new was drawn
        for place in itertools.cycle(places):
            if in_vain == len(places):
                return
            in_vain += 1
            fixed = dict(zip((axis.key for axis in grid), place, strict=True))
            for _ in range(_ATTEMPTS):
                setting = self.settle(arm, lambda a, fixed=fixed: fixed[a.key] if a.key in fixed else a.draw(rng))  # type: ignore[misc]
                if canonical(setting) not in seen and self.works(arm, setting):
                    seen.add(canonical(setting))
                    in_vain = 0
                    yield setting
                    break

    def works(self, arm: Arm, setting: Setting) -> bool:
        try:
            self.config_of(arm, setting, 0)
        except ConfigError:
            return False
        return True

    def rng(self, arm: Arm) -> np.random.Generator:
        return np.random.default_rng([self.search.seed, int.from_bytes(digest(arm.name.encode())[:8], "little")])

    def uses(self, arm: Arm, key: str) -> bool:
        structure = [axis for axis in self.axes if axis.key in _STRUCTURE]
        for values in itertools.product(*(axis.values for axis in structure)):
            fixed = dict(zip((axis.key for axis in structure), values, strict=True))
            if key in self.settle(arm, lambda axis, fixed=fixed: fixed.get(axis.key, axis.values[0])):  # type: ignore[misc]
                return True
        return False

    def _check(self, axis: Parameter) -> None:
        """Each of its values, or a range's ends, works with the others at one of their ends."""
        shown = self.search.space.get(axis.key, axis.values)
        if self.search.algorithm == "grid" and not axis.finite:
            reason, hint = "a grid has no end of values there", "List its values, or use search.algorithm=random"
            raise ConfigError(f"search.space.{axis.key}", shown, reason, hint)
        using = [arm for arm in self.arms if self.uses(arm, axis.key)]
        if not using:
            reason = f"no method in the space uses it ({', '.join(arm.name for arm in self.arms)})"
            hint = "Remove it, or add a method.type that uses it"
            raise ConfigError(f"search.space.{axis.key}", shown, reason, hint)
        for value in axis.values:
            refused = None
            for arm, end in itertools.product(using, (-1, 0)):
                try:
                    setting = self.settle(arm, lambda a, end=end: value if a.key == axis.key else a.values[end])  # type: ignore[misc] # noqa: B023
                    self.config_of(arm, setting, 0)
                    break
                except ConfigError as error:
                    refused = refused or error
            else:
                assert refused is not None
                raise ConfigError(f"search.space.{axis.key}", value, refused.reason, refused.hint)

    def _check_arm(self, arm: Arm) -> None:
        refused = None
        for end in (-1, 0):
            try:
                self.config_of(arm, self.settle(arm, lambda axis, end=end: axis.values[end]), 0)  # type: ignore[misc]
                return
            except ConfigError as error:
                refused = refused or error
        assert refused is not None
        raise refused


def _unchecked(values: dict[str, Any]) -> Method:
    """A method whose values may not go together yet: others of them are still to be drawn."""
    neutral = {name: field.default for name, field in Method.model_fields.items()}
    return Method.model_construct(**neutral | PRESETS[values.get("type", DEFAULT_METHOD)] | values)


def canonical(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True, default=str)


def _arms(config: Config, types: tuple[Any, ...] | None) -> list[Arm]:
    for name in types or ():
        if name not in PRESETS:
            near = get_close_matches(str(name), PRESETS, 1, 0.5)
            hint = f"Did you mean {near[0]}?" if near else f"They are {', '.join(PRESETS)}"
            raise ConfigError("search.space.method.type", name, "there is no such method", hint)
    own = {k: v for k, v in config.method.model_dump(exclude_unset=True).items() if k != "teacher"}

    def fixed(name: str) -> dict[str, Any]:  # the YAML's own settings are those of its own method
        return dict(own) if name == config.method.type else {"type": name}

    chosen = [name for name in (types or (config.method.type,)) if name not in CONTROLS]
    arms = [Arm(name, fixed(name), True) for name in CONTROLS]
    names = [teacher.name for teacher in config.teachers]
    if len(names) > 1:
        arms += [Arm(f"kd from {name}", fixed("kd") | {"teacher": name}, True) for name in names]
    elif "kd" not in chosen:
        arms.append(Arm("kd", fixed("kd"), True))
    return arms + [Arm(name, fixed(name), False) for name in chosen]


def _students(key: str, value: Any) -> str:
    """The key as it is searched: of the student alone, for teachers are trained once. ConfigError if it cannot be."""
    section, _, rest = key.partition(".")
    if section == "training" and rest:
        return f"student.{key}"
    where = f"search.space.{key}"
    known = {"method": list(Method.model_fields), "student.training": list(TrainingConfig.model_fields)}
    parent, _, last = key.rpartition(".")
    if key == "student.seed":
        raise ConfigError(
            where, value, "seeds are no settings", "Set search.seeds, on which the best are trained again"
        )
    if parent in known and last not in known[parent]:
        near = get_close_matches(last, known[parent], 1, 0.5)
        hint = f"Did you mean {parent}.{near[0]}?" if near else f"There are {', '.join(known[parent])}"
        raise ConfigError(where, value, "there is no such key", hint)
    if section == "method" or key.startswith(("student.training.", "student.model")):
        return key
    if section in Config.model_fields:
        reason = "all trials read the logits of the same teachers for the same rows: it is the same for all of them"
        hint = "Search keys of method, training (the student's) or student.model; compare jobs with raykd report"
        raise ConfigError(where, value, reason, hint)
    near = get_close_matches(key, ["method.alpha", "method.temperature", "method.W", "training.learning_rate"], 1, 0.3)
    hint = f"Did you mean {near[0]}?" if near else "Search keys of method, training or student.model"
    raise ConfigError(where, value, "there is no such key", hint)
