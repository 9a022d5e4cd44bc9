"""The source of the user's own modules (`my_module:name`): read here, hashed, and loaded as it is on every worker."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import invalidate_caches
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source, find_spec, resolve_name, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from raykd.common.dotted import here_on_path
from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint


@dataclass(frozen=True)
class OwnModule:
    """One module.

    name: as it is imported, such as `my_package.losses`.
    file: where it was read, for tracebacks and `__file__`; it need not exist on a worker.
    source: its text; "" for a folder of modules that has no `__init__.py`.
    package: whether it holds other modules.
    """

    name: str
    file: str
    source: str
    package: bool


@dataclass(frozen=True)
class OwnCode:
    """The modules that objects of the user's own need: those that name them, and what these import of the same folder.

    Installed packages are not part of it. Picklable, so a worker needs neither the files nor the current folder.
    """

    modules: tuple[OwnModule, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of the names and texts; "" if there are none."""
        return fingerprint([[m.name, m.package, m.source] for m in self.modules]) if self.modules else ""

    def __or__(self, other: "OwnCode") -> "OwnCode":
        """The modules of both; of one that is in both, the other's text."""
        modules = {module.name: module for module in (*self.modules, *other.modules)}
        return OwnCode(tuple(modules[name] for name in sorted(modules)))

    def install(self) -> None:
        """Let this process import these modules as they were read. Loaded ones of another text are loaded anew."""
        if not self.modules:
            return
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        if any(_FINDER.modules.get(m.name) != m or not _is_ours(sys.modules.get(m.name)) for m in self.modules):
            for module in self.modules:
                sys.modules.pop(module.name, None)
                _FINDER.modules[module.name] = module


def read_code(paths: Mapping[str, str]) -> OwnCode:
    """The code of objects of the user's own. Imports nothing. Raises ConfigError if a module is not found.

    paths: `module:name` by the config's key, for errors.
    """
    found: dict[str, OwnModule] = {}
    for key, path in paths.items():
        name = path.partition(":")[0]
        root = _root(name, key, path)
        try:
            _collect(name, root, found)
        except (OSError, SyntaxError, UnicodeError) as error:  # of its text, which need not be UTF-8
            reason = f"a source file in {root} cannot be read ({type(error).__name__}: {error})"
            raise ConfigError(key, path, reason, "Save the module and what it imports as UTF-8") from None
        if name not in found:
            reason = f"there is no module {name} in {root}"
            raise ConfigError(key, path, reason, "Correct its name, or run the command in the module's folder")
    return OwnCode(tuple(found[name] for name in sorted(found)))


def _root(name: str, key: str, path: str) -> Path:
    """The folder that holds the module, or its outermost package."""
    top = name.partition(".")[0]
    here_on_path()
    spec = PathFinder.find_spec(top)
    if spec is None and top != "__main__":
        invalidate_caches()  # the file can be newer than the last look into its folder
        spec = PathFinder.find_spec(top) or find_spec(top)  # a package that is installed as editable has its own finder
    if spec is None:
        reason, hint = f"there is no module {top}", "Run the command in the module's folder, or install it"
        if top == "__main__":
            reason, hint = "a script or notebook is no module", "Write it to a file, and name it as my_module:name"
        raise ConfigError(key, path, reason, hint)
    if (folder := _folder(spec)) is None:
        reason = f"{spec.origin} is not a Python source file, so its code cannot be part of a training's identity"
        raise ConfigError(key, path, reason, "Name an object of a module in Python")
    return folder


def _folder(spec: ModuleSpec) -> Path | None:
    """The folder that holds a module or package. None if it is not in Python, or is built in."""
    if spec.origin is None and spec.submodule_search_locations:  # a folder without __init__.py
        return Path(next(iter(spec.submodule_search_locations))).absolute().parent
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).absolute()
    return file.parent.parent if file.name == "__init__.py" else file.parent


def _collect(name: str, root: Path, found: dict[str, OwnModule]) -> None:
    """Add a module, the packages that it is in, and all of `root` that they import. Does nothing if it is elsewhere."""
    steps = name.split(".")
    installed = {"site-packages", "dist-packages"} & set(root.parts)
    for n in range(1, len(steps) + 1):
        part, place = ".".join(steps[:n]), root.joinpath(*steps[:n])
        if part in found:
            continue
        file, package = place / "__init__.py", True
        if not file.is_file():
            file, package = place.with_name(f"{place.name}.py"), False
        if not file.is_file():
            if n < len(steps) and place.is_dir():
                found[part] = OwnModule(part, str(place / "__init__.py"), "", True)
                continue
            return
        source = decode_source(file.read_bytes())
        found[part] = OwnModule(part, str(file), source, package)
        for imported in _imports(source, part, package):
            top = imported.partition(".")[0]
            if top == steps[0] or (top != "raykd" and not installed and _is_in(top, root)):
                _collect(imported, root, found)


def _is_in(top: str, root: Path) -> bool:
    """Whether Python would import this module from `root`. A folder there can have the name of an installed package."""
    spec = PathFinder.find_spec(top)
    return spec is not None and _folder(spec) == root


@lru_cache(maxsize=256)  # a sweep reads the same modules for every trial
def _imports(source: str, name: str, package: bool) -> tuple[str, ...]:
    """The names that a module imports, anywhere in it; of `from a import b` both a and a.b, which can be a module."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # importing it tells the user
        return ()
    return tuple(_names(tree, name, package))


def _names(tree: ast.AST, name: str, package: bool) -> Iterator[str]:
    base = name if package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                try:
                    origin = resolve_name("." * node.level + origin, base)
                except ImportError:  # beyond the outermost package; importing it tells the user
                    continue
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


class _Finder(MetaPathFinder, Loader):
    """Imports modules from texts. modules: by name."""

    def __init__(self) -> None:
        self.modules: dict[str, OwnModule] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if (module := self.modules.get(name)) is None:
            return None
        inside = [str(Path(module.file).parent)] if module.package else None
        return spec_from_file_location(name, module.file, loader=self, submodule_search_locations=inside)

    def exec_module(self, module: ModuleType) -> None:
        own = self.modules[module.__name__]
        exec(compile(own.source, own.file, "exec"), module.__dict__)

    def get_source(self, name: str) -> str:
        """For tracebacks where there is no such file."""
        return self.modules[name].source


_FINDER = _Finder()


def is_own(name: str) -> bool:
    """Whether a module was imported from a text that `OwnCode.install` has given."""
    return name in _FINDER.modules


def _is_ours(module: ModuleType | None) -> bool:
    """Whether a loaded module came from here; also of one that is not loaded."""
    return module is None or getattr(module, "__loader__", None) is _FINDER
