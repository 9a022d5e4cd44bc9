"""A sweep's search space: its arms (methods and controls) and the settings of each. Imports neither torch nor Ray."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
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

Setting = dict[str, Any]  # dotted key -> value
CONTROLS = ("finetune", "label_smoothing")
_STRUCTURE = (
    "method.weighting",
    "method.divergence",
    "method.schedule",
    "method.generations",
)  # these decide which other keys are used
# These distinguish the methods from each other, so they are searched only for methods whose preset sets them.
DEFINING = ("weighting", "schedule", "generations", "epsilon")
_MAX_POINTS = 20_000  # a finite space with more points is sampled as if it were infinite
# Points that are validated when they are counted, which takes a second; others are taken for valid.
_MOST_CHECKED = 2_000
_ATTEMPTS = 200  # draws per trial to find a setting that is new


@dataclass(frozen=True)
class SearchArm:
    """One of the methods that a sweep compares.

    method: its fixed values.
    control: whether it is a control, which every sweep includes.
    """

    name: str
    method: dict[str, Any]
    control: bool


class Space:
    """The search space of a config. Raises ConfigError for an invalid one, before anything is started."""

    def __init__(self, config: Config) -> None:
        self.config, self.search = config, config.search
        given = dict(config.search.space)
        types = read_parameter("method.type", given.pop("method.type")).values if "method.type" in given else None
        self.arms = _arms(config, types)
        parameters = [_parameter(_student_key(key, value), value) for key, value in given.items()]
        for parameter in parameters:
            if sum(other.key == parameter.key for other in parameters) > 1:  # training.x and student.training.x
                reason = "it is searched twice: a sweep's training.KEY is student.training.KEY"
                raise ConfigError(
                    f"search.space.{parameter.key}", given[parameter.key], reason, "Remove one of the two"
                )
        self.parameters = sorted(parameters, key=lambda p: (p.key not in _STRUCTURE, p.key == "method.floor"))
        self._base = config.model_dump(exclude={"search"})
        self._counts: dict[tuple[str, str, int | None], int] = {}  # see `trials`
        for parameter in self.parameters:
            if parameter.key.startswith("student.lora.") and config.student.lora is None:
                reason, hint = "the student has no adapter", "Add student.lora: {}"
                raise ConfigError(f"search.space.{parameter.key}", given[parameter.key], reason, hint)
            self._check(parameter)
        for arm in self.arms:  # for example, live logits exclude several generations
            self._check_arm(arm)
            self.trials(arm)

    def draw_setting(self, arm: SearchArm, draw: Callable[[Parameter], Any]) -> Setting:
        """One setting, define-by-run: a key that the arm does not use, given the values drawn so far, is skipped."""
        chosen: Setting = {}
        preset = unvalidated(arm.method)
        for parameter in self.parameters:
            section, _, name = parameter.key.partition(".")
            if section == "method":
                so_far = {k.removeprefix("method."): v for k, v in chosen.items() if k.startswith("method.")}
                if unvalidated(arm.method | so_far).unused(name):
                    continue
                if name in DEFINING and getattr(preset, name) == Method.model_fields[name].default:
                    continue  # for example, kd with generations is born_again, which is an arm of its own
                if name == "teacher" and arm.control and "teacher" in arm.method:
                    continue  # "kd from" this teacher
            chosen[parameter.key] = draw(parameter)
        return chosen

    def config_of(self, arm: SearchArm, setting: Setting, seed: int) -> Config:
        """The config of one training. Raises ConfigError, as for a job's YAML."""
        values = {"method": dict(arm.method)} | setting | {"student.seed": seed}
        return build(override(self._base, values))

    def points(self, arm: SearchArm) -> list[Setting] | None:
        """All settings of the arm, each once, valid or not; None if there are infinitely or too many."""
        used = [parameter for parameter in self.parameters if self.uses(arm, parameter.key)]
        every = [parameter.every for parameter in used]
        if None in every or np.prod([len(values or ()) for values in every], dtype=float) > _MAX_POINTS:
            return None
        points: dict[str, Setting] = {}
        for values in itertools.product(*(values for values in every if values is not None)):
            fixed = dict(zip((parameter.key for parameter in used), values, strict=True))
            setting = self.draw_setting(arm, lambda parameter, fixed=fixed: fixed[parameter.key])  # type: ignore[misc]
            points.setdefault(canonical(setting), setting)
        return list(points.values())

    def trials(self, arm: SearchArm) -> int:
        """How many settings the arm tries: the same number as every other, or all that are valid if it has fewer."""
        points = self.points(arm)
        most: int | None = self.search.trials or DEFAULT_TRIALS
        if self.search.algorithm == "grid" and self.search.trials is None:
            if points is None:
                reason = f"the grid of {arm.name} has more than {_MAX_POINTS} points"
                raise ConfigError("search.trials", None, reason, "Set how many of them to try, or list fewer values")
            most = None
        if points is None:
            assert most is not None
            return most
        key = arm.name, self.search.algorithm, most
        if key not in self._counts:
            checked = self._shuffled(arm, points)[:_MOST_CHECKED]
            valid = sum(1 for _ in itertools.islice((s for s in checked if self.works(arm, s)), most))
            self._counts[key] = min(most or len(points), valid + len(points) - len(checked))
        return self._counts[key]

    def settings(self, arm: SearchArm) -> Iterator[Setting]:
        """The arm's settings in order, without duplicates, for random and grid search. The same in every process.

        Skips combinations of values that are invalid together, such as a floor above alpha.
        """
        rng = self.rng(arm)
        points = self.points(arm)
        if points is not None:
            yield from (point for point in self._shuffled(arm, points) if self.works(arm, point))
            return
        grid = [p for p in self.parameters if p.kind == "grid" and self.uses(arm, p.key)]
        grid_points = list(itertools.product(*(parameter.values for parameter in grid)))
        seen: set[str] = set()
        fruitless = 0  # consecutive grid points for which no new setting was found
        for point in itertools.cycle(grid_points):
            if fruitless == len(grid_points):
                return
            fruitless += 1
            fixed = dict(zip((parameter.key for parameter in grid), point, strict=True))
            for _ in range(_ATTEMPTS):
                setting = self.draw_setting(arm, lambda p, fixed=fixed: fixed[p.key] if p.key in fixed else p.draw(rng))  # type: ignore[misc]
                if canonical(setting) not in seen and self.works(arm, setting):
                    seen.add(canonical(setting))
                    fruitless = 0
                    yield setting
                    break

    def _shuffled(self, arm: SearchArm, points: list[Setting]) -> list[Setting]:
        """The points in random order, so that the first few are spread over the space."""
        return [points[i] for i in self.rng(arm).permutation(len(points))]

    def works(self, arm: SearchArm, setting: Setting) -> bool:
        """Whether the setting's values are valid together."""
        try:
            self.config_of(arm, setting, 0)
        except ConfigError:
            return False
        return True

    def rng(self, arm: SearchArm) -> np.random.Generator:
        return np.random.default_rng([self.search.seed, int.from_bytes(digest(arm.name.encode())[:8], "little")])

    def uses(self, arm: SearchArm, key: str) -> bool:
        """Whether any setting of the arm has the key."""
        structure = [parameter for parameter in self.parameters if parameter.key in _STRUCTURE]
        for values in itertools.product(*(parameter.values for parameter in structure)):
            fixed = dict(zip((parameter.key for parameter in structure), values, strict=True))
            if key in self.draw_setting(arm, lambda p, fixed=fixed: fixed.get(p.key, p.values[0])):  # type: ignore[misc]
                return True
        return False

    def _check(self, parameter: Parameter) -> None:
        """Check that each value (for a range: both ends) is valid with other parameters' values: see `_places`."""
        shown = self.search.space.get(parameter.key, parameter.values)
        if self.search.algorithm == "grid" and not parameter.finite:
            reason, hint = "a grid needs a finite number of values", "List its values, or use search.algorithm=random"
            raise ConfigError(f"search.space.{parameter.key}", shown, reason, hint)
        using = [arm for arm in self.arms if self.uses(arm, parameter.key)]
        if not using:
            reason = f"no method in the space uses it ({', '.join(arm.name for arm in self.arms)})"
            hint = "Remove it, or add a method.type that uses it"
            raise ConfigError(f"search.space.{parameter.key}", shown, reason, hint)
        for value in parameter.values:
            first_error = None
            for arm, place in itertools.product(using, self._places):
                try:
                    setting = self.draw_setting(arm, lambda p, at=place: value if p is parameter else _at(p, at))  # type: ignore[misc] # noqa: B023
                    self.config_of(arm, setting, 0)
                    break
                except ConfigError as error:
                    first_error = first_error or error
            else:
                assert first_error is not None
                if any(first_error.key == other.key for other in self.parameters):  # one whose values are all invalid
                    raise _in_space(first_error, first_error.key, first_error.value)
                raise _in_space(first_error, parameter.key, value)

    @property
    def _places(self) -> Sequence[int]:
        """At which the parameters' values are tried together: both ends, then one value after another of each list."""
        return [-1, 0, *range(1, max((len(p.values) for p in self.parameters), default=0) - 1)]

    def _check_arm(self, arm: SearchArm) -> None:
        first_error = None
        for place in self._places:
            try:
                self.config_of(arm, self.draw_setting(arm, lambda parameter, at=place: _at(parameter, at)), 0)  # type: ignore[misc]
                return
            except ConfigError as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error


def _in_space(error: ConfigError, key: str, value: object) -> ConfigError:
    """The error of a training's config, of a value that the search space gives it."""
    return ConfigError(f"search.space.{key}", value, error.reason, error.hint)


def _at(parameter: Parameter, place: int) -> Any:
    """The value at a place; a list that is shorter begins again. -1: its last one."""
    return parameter.values[place if place < 0 else place % len(parameter.values)]


def unvalidated(values: dict[str, Any]) -> Method:
    """A method that is not validated, because some of its values are still to be drawn."""
    neutral = {name: field.default for name, field in Method.model_fields.items()}
    return Method.model_construct(**neutral | PRESETS[values.get("type", DEFAULT_METHOD)] | values)


def canonical(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True, default=str)


def _arms(config: Config, types: tuple[Any, ...] | None) -> list[SearchArm]:
    for name in types or ():
        if name not in PRESETS:
            near = get_close_matches(str(name), PRESETS, 1, 0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Methods: {', '.join(PRESETS)}"
            raise ConfigError("search.space.method.type", name, "there is no such method", hint)
    own = config.method.model_dump(exclude_unset=True)

    def fixed(name: str) -> dict[str, Any]:  # the settings under `method` in the YAML belong to that method alone
        return dict(own) if name == config.method.type else {"type": name}

    chosen = [name for name in (types or (config.method.type,)) if name not in CONTROLS]
    controls = [name for name in CONTROLS if name in (types or ()) or not _impossible(name, config)]
    arms = [SearchArm(name, fixed(name), True) for name in controls]
    names = [teacher.name for teacher in config.teachers]
    if len(names) > 1:
        arms += [SearchArm(f"kd from {name}", fixed("kd") | {"teacher": name}, True) for name in names]
    elif "kd" not in chosen:
        arms.append(SearchArm("kd", fixed("kd"), True))
    return arms + [SearchArm(name, fixed(name), False) for name in chosen]


def _impossible(method: str, config: Config) -> bool:
    """Whether the task does not have the method: values are not smoothed."""
    return method == "label_smoothing" and config.task.predicts_values


def _parameter(key: str, value: Any) -> Parameter:
    section, _, name = key.rpartition(".")
    fields = {"method": Method.model_fields, "student.training": TrainingConfig.model_fields}.get(section, {})
    parameter = read_parameter(key, value)
    whole = name in fields and fields[name].annotation in (int, int | None)
    return parameter.of_whole_numbers() if whole else parameter


def _student_key(key: str, value: Any) -> str:
    """The key of the student alone, because teachers are trained once. ConfigError if it cannot be searched."""
    section, _, rest = key.partition(".")
    if section == "training" and rest:
        return f"student.{key}"
    where = f"search.space.{key}"
    known = {"method": list(Method.model_fields), "student.training": list(TrainingConfig.model_fields)}
    known["student.lora"] = ["r", "alpha", "dropout"]
    parent, _, last = key.rpartition(".")
    if key == "student.seed":
        raise ConfigError(
            where,
            value,
            "a seed is not a setting",
            "Set search.seeds: the best settings are trained again on that many seeds",
        )
    if parent in known and last not in known[parent]:
        near = get_close_matches(last, known[parent], 1, 0.5)
        hint = f"Did you mean {parent}.{near[0]}?" if near else f"Its keys: {', '.join(known[parent])}"
        raise ConfigError(where, value, "there is no such key", hint)
    if section == "method" or key.startswith(("student.training.", "student.model", "student.lora.")):
        return key
    if section in Config.model_fields:
        reason = "it is the same for all trials, because they read the same teachers' logits of the same rows"
        hint = "Search keys of method, training (the student's) or student.model; compare jobs with raykd report"
        raise ConfigError(where, value, reason, hint)
    near = get_close_matches(key, ["method.alpha", "method.temperature", "method.W", "training.learning_rate"], 1, 0.3)
    hint = f"Did you mean {near[0]}?" if near else "Search keys of method, training or student.model"
    raise ConfigError(where, value, "there is no such key", hint)
