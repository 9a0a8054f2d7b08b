"""Registries of components by name, which import a component only when it is used.

A component is one file: a module with a class decorated with `@register("<name>")`; the first line of the
module's docstring is its summary. Name and summary are read from the source text, so a list of all components
needs no import of torch. Other packages add components through an entry point::

    [project.entry-points."duallora_bench.methods"]
    my-method = "my_package.my_method:MyMethod"
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from methods.errors import UsageError, unknown

if TYPE_CHECKING:
    from methods.base import Method

C = TypeVar("C", bound=type)

#: What is registered: the class of a component, or a protocol of its class-level attributes.
T = TypeVar("T", default=Any)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered component, not imported yet.

    Attributes:
        target: 'module:Class'.
    """

    name: str
    target: str
    summary: str

    def load(self) -> T:
        """Import its module; return the class."""
        module, _, attribute = self.target.partition(":")
        component: T = getattr(importlib.import_module(module), attribute)
        return component


def register(name: str) -> Callable[[C], C]:
    """Register the decorated class under `name`; `Registry` finds it by this line in the source."""

    def mark(cls: C) -> C:
        cls.name = name  # type: ignore[attr-defined]
        return cls

    return mark


def _registered_name(node: ast.stmt) -> str | None:
    if not isinstance(node, ast.ClassDef):
        return None
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="register"), args=[ast.Constant(value=str(name))]):
                return name
    return None


def _entries_of_file(path: Path, package: str) -> list[Entry[T]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return [
        Entry(name, f"{package}.{path.stem}:{node.name}", summary)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and (name := _registered_name(node))
    ]


def _entry_of_plugin(point: EntryPoint) -> Entry[T]:
    package = point.dist.name if point.dist else "another package"
    return Entry(point.name, point.value, f"from {package}")


class Registry(Mapping[str, Entry[T]]):
    """The components of one kind, by name: those of the modules in `folder` and of an entry-point group.

    Args:
        kind: what a component is called in messages.
        package: the package that `folder` is.
        group: the entry-point group.

    Raises:
        UsageError: for an unknown name (with the nearest one), or a name that is registered twice.
    """

    def __init__(self, kind: str, package: str, folder: Path, group: str) -> None:
        self.kind, self.package, self.folder, self.group = kind, package, folder, group

    @cached_property
    def _entries(self) -> dict[str, Entry[T]]:
        modules = sorted(self.folder.glob("*.py"))
        candidates: list[Entry[T]] = [e for path in modules for e in _entries_of_file(path, self.package)]
        candidates += [_entry_of_plugin(point) for point in entry_points(group=self.group)]
        entries: dict[str, Entry[T]] = {}
        for entry in candidates:
            other = entries.setdefault(entry.name, entry)
            if other.target != entry.target:
                raise UsageError(
                    f"{self.kind} '{entry.name}' is registered twice, by {other.target} and by "
                    f"{entry.target}; uninstall one of the two packages or rename its entry point"
                )
        return entries

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS: Registry[type[Method]] = Registry(
    "method", "methods", Path(__file__).parent, "duallora_bench.methods"
)

#: What is run where no method is named: the methods that the project is about, and the references.
DEFAULT_METHODS = (
    *("coda-prompt", "duallora", "dualprompt", "inflora", "l2p"),
    *("finetune", "joint", "linear-probe", "ncm"),
)
