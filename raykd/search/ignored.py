"""Values of a job that its sweep ignores, or uses for one method only. Imports neither torch nor Ray.

An override on the command line was typed for this sweep, so it is an error. The YAML is also used by `raykd distill`,
so a sweep only warns about values there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raykd.common.errors import ConfigError
from raykd.config.load import spelled_out
from raykd.config.methods import PRESETS, TEACHERLESS, Method, for_values
from raykd.config.parameter import read_parameter
from raykd.config.schema import Config
from raykd.search.space import DEFINING, Space, unvalidated


def check_overrides(config: Config, overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError if an override of a sweep would have no effect on it, or on one of its methods only."""
    for key, value in (spelled_out(*item) for item in overrides.items()):
        for searched in config.search.space:
            if _one_of_two(key) == _one_of_two(searched):
                reason = f"search.space.{searched} draws it for every trial, so this value would have no effect"
                hint = f"Override search.space.{searched}"
                trained = [f"teachers.{teacher.name}" for teacher in config.teachers if teacher.recipe]
                if key.startswith("training.") and trained:
                    reason += " on the student"
                    them = "teachers.*" if len(trained) == len(config.teachers) else " and ".join(trained)
                    hint += f"; for the teachers' own trainings, recipe.{key} of {them}"
                raise ConfigError(key, value, reason, hint)
        if key == "student.seed" and len(config.student.seeds) > 1:
            hint = "Give one; search.seeds sets with how many the best settings are trained again"
            raise ConfigError(key, value, "a sweep's trials have one seed", hint)
        if key == "baseline" and not config.baseline:
            reason = "it has no effect, because a sweep always trains fine-tuning as a control"
            raise ConfigError(key, value, reason, "Remove it")
        section, _, name = key.partition(".")
        if section == "method" and name in Method.model_fields and (missed := _other_methods(config, name)):
            own = config.method.type
            reason = f"it applies to {own} only, and not to {', '.join(missed)}"
            if own not in _types(config):
                reason = f"it is for {own}, which search.space.method.type does not have"
            raise ConfigError(key, value, reason, f"search.space.{key}=[{value}] gives it to all that use it")


def _one_of_two(key: str) -> str:
    """One name for two keys that mean the same, or of which only one can be given: steps or epochs of the student."""
    key = key.removeprefix("student.")
    return "training.epochs" if key == "training.steps" else key


def _other_methods(config: Config, name: str) -> list[str]:
    """The searched methods that use this key of `method`, and do not get the value that the job has for its own."""
    own = getattr(config.method, name)
    preset = getattr(_usual(config, config.method.type), name)
    defines = name in DEFINING and preset != Method.model_fields[name].default
    if name == "type" or defines or f"method.{name}" in config.search.space:
        return []
    others = [one for one in _types(config) if one in PRESETS and one not in (config.method.type, *TEACHERLESS)]
    methods = {one: _usual(config, one) for one in others}
    return [one for one, method in methods.items() if method.unused(name) is None and getattr(method, name) != own]


def _types(config: Config) -> Sequence[str]:
    """The types of method that are searched."""
    given = config.search.space.get("method.type")
    return (config.method.type,) if given is None else read_parameter("method.type", given).values


def _usual(config: Config, kind: str) -> Method:
    """A type of method as it is where nothing but the type is given."""
    return unvalidated(for_values(kind) if config.task.predicts_values else {"type": kind})


def ignored_values(space: Space) -> Iterator[str]:
    """One line for each value of the job's that the sweep does not use, or not for every method."""
    config = space.config
    methods = {arm.name: unvalidated(arm.method) for arm in space.arms}
    weightings = {method.weighting for method in methods.values()} - {"mean"}
    if len(config.teachers) == 1 and weightings:
        weighting = ", ".join(sorted(weightings))
        yield f"weighting = {weighting} has no effect with one teacher, so its trials equal those of kd"
    own, preset = config.method, _usual(config, config.method.type)
    given = [name for name in Method.model_fields if getattr(own, name) != getattr(preset, name)]
    of_own_type = {name: method for name, method in methods.items() if method.type == own.type}
    if given and not of_own_type:
        label = config.method_label
        yield f"method = {label} is for raykd distill alone: search.space.method.type does not have {own.type}"
    for name in given if of_own_type else []:
        if missed := _other_methods(config, name):
            value = getattr(own, name)
            reached = [arm for arm, method in of_own_type.items() if getattr(method, name) == value]
            hint = f"search.space.method.{name}: [{value}] gives it to all that use it"
            yield f"method.{name} = {value} is for {', '.join(reached)} only, and not for {', '.join(missed)}; {hint}"
    seeds, search = config.student.seeds, config.search
    if len(seeds) not in (1, search.seeds):
        yield (
            f"student.seed = {seeds} is for raykd distill: a sweep's trials have the seed {seeds[0]}, and the best "
            f"settings are trained again on {search.seeds} others (search.seeds)"
        )
    if not config.baseline:
        yield "baseline = False is for raykd distill: a sweep always trains fine-tuning as a control"
