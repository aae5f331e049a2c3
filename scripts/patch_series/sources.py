# SPDX-License-Identifier: Apache-2.0
"""Dotted paths looked up in Python sources, which are parsed and never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

#: Imports and base classes that a name may come through.
_DEPTH = 8
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Sources:
    """What the packages below ``folder`` define."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parsed: dict[Path, _Module] = {}

    def find(self, target: str) -> ast.AST | None:
        """The definition of ``target`` (``package.module.Class.method``): a function, a class, an
        assignment, or a module; None: it has none that the sources show."""
        return self._find(target, _DEPTH)

    def _find(self, target: str, depth: int) -> ast.AST | None:
        parts = target.split(".")
        for length in range(len(parts), 0, -1):
            file = self._file(parts[:length])
            if file is not None:
                module = self._module(file, ".".join(parts[:length]))
                if length == len(parts):
                    return module.tree
                return self._lookup(module, module.tree.body, parts[length:], depth)
        return None

    def _file(self, parts: Sequence[str]) -> Path | None:
        place = self.folder.joinpath(*parts)
        for file in (place.with_name(place.name + ".py"), place / "__init__.py"):
            if file.is_file():
                return file
        return None

    def _module(self, file: Path, name: str) -> _Module:
        if file not in self._parsed:
            self._parsed[file] = _Module(file, name)
        return self._parsed[file]

    def _lookup(
        self, module: _Module, body: Sequence[ast.stmt], names: Sequence[str], depth: int
    ) -> ast.AST | None:
        if depth == 0:
            return None
        found: ast.AST | None = None
        for node in _statements(body):
            imported = module.import_of(node, names[0])
            if imported is not None:
                found = self._find(".".join([imported, *names[1:]]), depth - 1) or found
            elif names[0] in _defined(node):
                found = self._inside(module, node, names[1:], depth) or found
        return found

    def _inside(
        self, module: _Module, node: ast.AST, rest: Sequence[str], depth: int
    ) -> ast.AST | None:
        if not rest:
            return node
        if not isinstance(node, ast.ClassDef):
            return None
        found = self._lookup(module, node.body, rest, depth)
        for base in node.bases:
            if found is None:
                name = ast.unparse(base).split("[")[0]
                found = self._lookup(module, module.tree.body, [*name.split("."), *rest], depth - 1)
        return found


class _Module:
    def __init__(self, file: Path, name: str) -> None:
        self._file = file
        self._name = name

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self._file.read_bytes())

    def import_of(self, node: ast.stmt, name: str) -> str | None:
        """The dotted path that ``node`` imports as ``name``."""
        if isinstance(node, ast.Import):
            return next((a.name for a in node.names if a.asname == name), None)
        if not isinstance(node, ast.ImportFrom):
            return None
        for alias in node.names:
            if alias.name == "*" or (alias.asname or alias.name) == name:
                original = name if alias.name == "*" else alias.name
                return ".".join([*self._origin(node), original])
        return None

    def _origin(self, node: ast.ImportFrom) -> list[str]:
        package = self._name.split(".")
        if self._file.name != "__init__.py":
            package = package[:-1]
        above = package[: len(package) - node.level + 1] if node.level else []
        return above + (node.module.split(".") if node.module else [])


def parameters(node: ast.AST) -> list[str] | None:
    """Names of a function's parameters; None: ``node`` is no function."""
    if not isinstance(node, _FUNCTIONS):
        return None
    args = node.args
    extra = [a.arg for a in (args.vararg, args.kwarg) if a is not None]
    return [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)] + extra


def same(one: ast.AST, other: ast.AST) -> bool:
    """Whether two definitions are the same code; comments and layout do not count."""
    return ast.dump(one) == ast.dump(other)


def imported_from(package: str, files: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Dotted paths that ``files`` import from ``package``, with the file that does."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from ((name, file) for name in names if name.split(".")[0] == package)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body and of the conditions in it."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            yield from _statements(getattr(node, "orelse", []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []
