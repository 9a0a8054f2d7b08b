"""Names to classes, without importing a class before it is used.

A component is a file: the module holds one class decorated with `@register("<name>")`, and the first
line of the module's docstring is its summary. The name and the summary are read from the source text,
so listing what exists costs no import of torch. Other packages add theirs through an entry point::

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
from typing import Any, TypeVar

from methods.errors import UsageError, unknown

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Entry:
    """One registered component, not imported yet: `target` is 'module:Class'."""

    name: str
    target: str
    summary: str

    def load(self) -> Any:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


def register(name: str) -> Callable[[C], C]:
    """Mark a class as the component `name`; `Registry` finds it by this line in the source."""

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


def _entries_of_file(path: Path, package: str) -> list[Entry]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return [
        Entry(name, f"{package}.{path.stem}:{node.name}", summary)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and (name := _registered_name(node))
    ]


def _entry_of_plugin(point: EntryPoint) -> Entry:
    package = point.dist.name if point.dist else "another package"
    return Entry(point.name, point.value, f"from {package}")


class Registry(Mapping[str, Entry]):
    """The components of one kind: those in `folder`, and those of the entry-point group.

    Raises:
        UsageError: for an unknown name (with the nearest one), or a name that is registered twice.
    """

    def __init__(self, kind: str, package: str, folder: Path, group: str) -> None:
        self.kind, self.package, self.folder, self.group = kind, package, folder, group

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        found = [e for path in sorted(self.folder.glob("*.py")) for e in _entries_of_file(path, self.package)]
        found += [_entry_of_plugin(point) for point in entry_points(group=self.group)]
        entries: dict[str, Entry] = {}
        for entry in found:
            other = entries.setdefault(entry.name, entry)
            if other.target != entry.target:
                raise UsageError(
                    f"{self.kind} '{entry.name}' is registered twice, by {other.target} and by "
                    f"{entry.target}; uninstall one of the two packages or rename its entry point"
                )
        return entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS = Registry("method", "methods", Path(__file__).parent, "duallora_bench.methods")
