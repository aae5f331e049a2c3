# SPDX-License-Identifier: Apache-2.0
"""What other code can call in the files that the series touches: nothing of it may go or narrow."""

from __future__ import annotations

import ast

from patch_series.tree import RELEASED, Tree


def surface_problems(tree: Tree) -> list[str]:
    """Functions, classes and module names that the tree lost against the release, and parameters
    that a caller would now have to give."""
    changed = tree.git("diff", "--name-only", "--diff-filter=MD", RELEASED, "--", "python").split()
    problems = []
    for path in changed:
        old = _surface(tree.git("show", f"{RELEASED}:{path}"))
        present = (tree.folder / path).exists()
        new = _surface((tree.folder / path).read_text(encoding="utf-8")) if present else {}
        for name, parameters in old.items():
            if name not in new:
                problems.append(f"{path}: {name} is gone")
            elif parameters is not None and new[name] is not None:
                problems += [
                    f"{path}: {name} {said}" for said in _narrowed(parameters, new[name] or {})
                ]
    return problems


def _narrowed(old: dict[str, bool], new: dict[str, bool]) -> list[str]:
    """``True`` means that a caller may leave the parameter out."""
    gone = [f"lost its parameter {name}" for name in old if name not in new]
    asked = [
        f"asks for {name}" for name, optional in new.items() if not optional and old.get(name, True)
    ]
    order = [name for name in new if name in old] != [name for name in old if name in new]
    return gone + asked + (["takes its parameters in another order"] if order else [])


def _surface(source: str) -> dict[str, dict[str, bool] | None]:
    """Parameters of each function by dotted name; classes and assigned names have none."""
    found: dict[str, dict[str, bool] | None] = {}
    _collect(ast.parse(source).body, "", found)
    return found


def _collect(body: list[ast.stmt], prefix: str, found: dict[str, dict[str, bool] | None]) -> None:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[prefix + node.name] = _parameters(node.args)
        elif isinstance(node, ast.ClassDef):
            found[prefix + node.name] = None
            _collect(node.body, f"{prefix}{node.name}.", found)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[prefix + target.id] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[prefix + node.target.id] = None
        elif isinstance(node, ast.If | ast.Try):
            _collect([*node.body, *node.orelse], prefix, found)


def _parameters(args: ast.arguments) -> dict[str, bool]:
    positional = [*args.posonlyargs, *args.args]
    bare = len(positional) - len(args.defaults)
    found = {arg.arg: place >= bare for place, arg in enumerate(positional)}
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[arg.arg] = default is not None
    for extra in (args.vararg, args.kwarg):
        if extra is not None:
            found["*" + extra.arg] = True
    return found
