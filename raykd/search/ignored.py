"""Values of a job that its sweep ignores, or uses for one method only. Imports neither torch nor Ray.

An override on the command line was typed for this sweep, so it is an error. The YAML also serves `raykd distill`, whose
method and seeds it says, so a sweep only warns of what it has there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from raykd.common.errors import ConfigError
from raykd.config.load import spelled_out
from raykd.config.methods import PRESETS, TEACHERLESS, Method
from raykd.config.parameter import read_parameter
from raykd.config.schema import Config
from raykd.search.space import DEFINING, Space, unchecked


def check_overrides(config: Config, overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError if an override of a sweep would have no effect on it, or on one of its methods only."""
    for key, value in (spelled_out(*item) for item in overrides.items()):
        for searched in config.search.space:
            if _canonical(key) == _canonical(searched):
                reason = f"search.space.{searched} draws it for every trial, so this value would have no effect"
                hint = f"Override search.space.{searched}"
                if key.startswith("training.") and any(teacher.recipe for teacher in config.teachers):
                    reason += " on the student"
                    hint += f"; of the teachers' own trainings, teachers.*.recipe.{key}"
                raise ConfigError(key, value, reason, hint)
        if key == "student.seed" and len(config.student.seeds) > 1:
            raise ConfigError(key, value, "a sweep's trials have one seed", "Give one; search.seeds is for the best")
        if key == "baseline" and not config.baseline:
            reason = "it has no effect, because a sweep always trains fine-tuning as a control"
            raise ConfigError(key, value, reason, "Remove it")
        section, _, name = key.partition(".")
        if section == "method" and name in Method.model_fields and (missed := _other_methods(config, name)):
            reason = f"it would reach {config.method.type} only, and not {', '.join(missed)}"
            raise ConfigError(key, value, reason, f"search.space.{key}=[{value}] gives it to all of them")


def _canonical(key: str) -> str:
    """One name for the keys of which only one can be given: a sweep's training is the student's, by steps or epochs."""
    key = key.removeprefix("student.")
    return "training.epochs" if key == "training.steps" else key


def _other_methods(config: Config, name: str) -> list[str]:
    """The searched methods that use this key of `method`, and do not get the value that the job has for its own."""
    given = config.search.space.get("method.type")
    types = read_parameter("method.type", given).values if given is not None else (config.method.type,)
    others = [one for one in types if one in PRESETS and one not in (config.method.type, *TEACHERLESS)]
    if name in ("type", *DEFINING) or f"method.{name}" in config.search.space:
        return []
    methods = {one: unchecked({"type": one}) for one in others}
    own = getattr(config.method, name)
    return [one for one, method in methods.items() if method.unused(name) is None and getattr(method, name) != own]


def ignored(space: Space) -> Iterator[str]:
    """One line for each value of the job's that the sweep does not use, or not for every method."""
    config = space.config
    methods = {arm.name: unchecked(arm.method) for arm in space.arms}
    weightings = {method.weighting for method in methods.values()} - {"mean"}
    if len(config.teachers) == 1 and weightings:
        weighting = ", ".join(sorted(weightings))
        yield f"weighting = {weighting} has no effect with one teacher, so its trials equal those of kd"
    own, preset = config.method, unchecked({"type": config.method.type})
    given = [name for name in Method.model_fields if getattr(own, name) != getattr(preset, name)]
    of_own_type = {name: method for name, method in methods.items() if method.type == own.type}
    if given and not of_own_type:
        yield f"method = {own.label} is for raykd distill alone: search.space.method.type does not have {own.type}"
    for name in given if of_own_type else []:
        if missed := _other_methods(config, name):
            value = getattr(own, name)
            reached = [arm for arm, method in of_own_type.items() if getattr(method, name) == value]
            hint = f"search.space.method.{name}: [{value}] gives it to all of them"
            yield f"method.{name} = {value} is for {', '.join(reached)} only, and not for {', '.join(missed)}; {hint}"
    seeds, search = config.student.seeds, config.search
    if len(seeds) not in (1, search.seeds):
        yield (
            f"student.seed = {seeds} is for raykd distill: a sweep's trials have the seed {seeds[0]}, and the best "
            f"settings are trained again on {search.seeds} others (search.seeds)"
        )
    if not config.baseline:
        yield "baseline = False is for raykd distill: a sweep always trains fine-tuning as a control"
