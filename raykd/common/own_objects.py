"""Objects of the user's own code: imports them, and describes what goes wrong in them by its file and line."""

import functools
import importlib
import threading
import traceback
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from raykd.common.dotted import here_on_path
from raykd.common.errors import ConfigError, OwnCodeError, UserError, disk_is_full
from raykd.common.own_code import is_own

_MOST = 300  # characters of an exception's text
_HINT = "Correct it; with --debug, raykd shows the whole traceback"
_running = threading.local()  # whether this thread is in a method of the user's own


def imported(path: str, key: str) -> Any:
    """The object that `module:name` names. Modules of the current folder can be imported, as by `python -m`.

    key: the config's key, for errors. Raises ConfigError.
    """
    module, _, name = path.partition(":")
    here_on_path()
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module's own code can raise anything
        reason = f"the module {module} cannot be imported ({failure(error, path)})"
        raise ConfigError(key, path, reason, "Run the command in the module's folder, or install it") from error
    if not hasattr(found, name):
        hint = f"Name one of its functions, as {module}:NAME"
        raise ConfigError(key, path, f"{getattr(found, '__file__', module)} has no {name}", hint)
    return getattr(found, name)


def failure(error: BaseException, path: str) -> str:
    """An exception in one line, with the innermost function of the user's own code that it passed.

    path: `module:name` of the object that was used. Modules of the same package count as the user's own, too.
    """
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text[:_MOST]}" if text else type(error).__name__
    top, place = path.partition(":")[0].partition(".")[0], ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if is_own(module) or module.partition(".")[0] == top:
            name = frame.f_code.co_name
            inside = "" if name == "<module>" else f"in {name}, "
            place = f", {inside}{frame.f_code.co_filename}, line {line}"
    return text + place


def guard_methods(cls: type, base: type, key: str, path: str, returns: Mapping[str, type]) -> None:
    """Let what goes wrong in a method of the user's own class be an OwnCodeError that names the method and its place.

    Only the outermost method does it, so that within the user's code exceptions are what they are.

    base: the class of raykd's whose members the user's own replace.
    key, path: of the config, and `module:name` of the class.
    returns: the types of results, by the method's name.
    """
    ours = [one for one in cls.__mro__ if one.__module__.partition(".")[0] == base.__module__.partition(".")[0]]
    for one in cls.__mro__:
        if one in ours or one.__module__ == "builtins":
            continue
        for name, member in list(vars(one).items()):
            if not any(name in vars(each) for each in ours):
                continue
            kind, method = type(member), getattr(member, "__func__", member)
            if not isinstance(method, FunctionType) or hasattr(method, "guarded"):
                continue
            guarded = _guarded(method, name, key, path, returns.get(name, object))
            setattr(one, name, kind(guarded) if kind in (staticmethod, classmethod) else guarded)


def _guarded(method: FunctionType, name: str, key: str, path: str, wanted: type) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        if getattr(_running, "own", False):
            return method(*given, **named)
        _running.own = True
        try:
            found = method(*given, **named)
        except Exception as error:  # it is the user's code
            if handled_elsewhere(error):
                raise
            raise OwnCodeError(key, path, f"its {name} failed ({failure(error, path)})", _HINT) from error
        finally:
            _running.own = False
        if not isinstance(found, wanted):
            hint = f"Return a {wanted.__module__.partition('.')[0]}.{wanted.__name__}"
            raise OwnCodeError(key, path, f"its {name} returns a {type(found).__name__}", hint)
        return found

    call.guarded = True  # type: ignore[attr-defined]
    return call


def handled_elsewhere(error: Exception) -> bool:
    """Whether an exception in the user's code is not of its making: raykd's own, or of memory, a GPU or a full disk."""
    text = str(error)
    lacking = any(words in text.lower() for words in ("out of memory", "can't allocate memory", "cuda"))
    memory = isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
    return isinstance(error, UserError) or memory or lacking or disk_is_full(error)
