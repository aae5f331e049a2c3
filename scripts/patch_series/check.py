# SPDX-License-Identifier: Apache-2.0
"""Every claim of the series, tried on the installed wheel.

Per patch: it applies where ``series.toml`` says so and to the wheel itself; a fix's tests fail
without it and pass with it; a seam's symbols are absent without it and there with it. Of the whole
series: it applies in order, all tests pass together, the patch files are what git writes,
upstream's test kits compute the same with and without it, no default changed, and what others
may call is still there.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Callable
from pathlib import Path

from patch_series.form import form_problems
from patch_series.refresh import written
from patch_series.series import Patch, Series, SeriesError
from patch_series.states import State, Worker
from patch_series.surface import surface_problems
from patch_series.tree import RELEASED, Tree, Wheel, git

_OK = "ok"


def check(
    series: Series, wheel: Wheel, tree: Tree, worker: Worker, *, say: Callable[[str], None]
) -> list[str]:
    """Problems of the series, empty when all claims hold; ``say`` gets a line per finding.

    ``tree``: of ``wheel``; patched and reset, and at the release in the end.

    Raises:
        SeriesError: the wheel is of another release, or a test process died.
    """
    if wheel.version != series.release:
        raise SeriesError(
            f"the series is for sglang {series.release}, {wheel.version} is installed here"
        )
    problems = []
    released = _released(series, tree, worker)
    for patch in series.patches:
        found = form_problems(patch, series.path(patch))
        found += _check_one(series, patch, wheel, tree, worker, released)
        problems += [f"{patch.file}: {said}" for said in found]
        say(f"{'WRONG' if found else 'ok   '}  {patch.file}")
    whole = _check_whole(series, tree, worker, released)
    say(f"{'WRONG' if whole else 'ok   '}  the whole series")
    tree.reset()
    return problems + whole


def _released(series: Series, tree: Tree, worker: Worker) -> State:
    """The wheel as released, with the tests of the series: fixes must fail, seams be absent."""
    tree.reset()
    for patch in series.patches:
        _add_tests(series, patch, tree)
    return worker.run(
        tree.folder,
        tests=[test for patch in series.patches for test in patch.tests],
        symbols=_symbols(series),
        defaults=True,
        probe=True,
    )


def _check_one(
    series: Series, patch: Patch, wheel: Wheel, tree: Tree, worker: Worker, released: State
) -> list[str]:
    """Problems of one patch on top of what it needs, and of nothing else."""
    needed = series.needed_by(patch)
    try:
        tree.reset()
        tree.apply([series.path(earlier) for earlier in needed])
        without = released
        if needed:
            _add_tests(series, patch, tree)
            without = worker.run(tree.folder, tests=patch.tests, symbols=patch.symbols)
            tree.git("checkout", "--quiet", "--force", "HEAD")
            tree.git("clean", "--quiet", "--force", "-d")
        tree.apply([series.path(patch)])
        _apply_to_wheel(series, [*needed, patch], wheel, tree)
    except SeriesError as error:
        return [str(error)]
    given = worker.run(tree.folder, tests=patch.tests, symbols=patch.symbols)
    problems = _failed("", given) + [f"with it there is no {name}" for name in _absent(given)]
    for file in patch.tests:
        if not given.of_file(file):
            problems.append(f"{file} holds no test")
        if all(said == _OK for said in without.of_file(file).values()):
            problems.append(f"{file} passes without the patch")
        if patch.kind == "fix" and file in without.tests:
            problems.append(f"{file} cannot be imported without the patch: {without.tests[file]}")
    problems += [
        f"{name} is there without it" for name in patch.symbols if without.symbols.get(name)
    ]
    return problems


def _add_tests(series: Series, patch: Patch, tree: Tree) -> None:
    """Write the tests of ``patch`` into the tree, and nothing else of it."""
    tree.git("apply", "--include=test/*", str(series.path(patch)))


def _apply_to_wheel(series: Series, patches: list[Patch], wheel: Wheel, tree: Tree) -> None:
    """What a user would do to an installed SGLang must give the files that the tree has.

    Raises:
        SeriesError: it does not apply there, or gives other files.
    """
    changed = tree.git("diff", "--name-only", RELEASED, "--", "python").split()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for path in changed:
            name = path.removeprefix("python/")
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            if (wheel.folder / name).exists():
                (site / name).write_bytes((wheel.folder / name).read_bytes())
        for patch in patches:
            git(site, "apply", "-p2", "--include=sglang/*", str(series.path(patch)))
        for path in changed:
            if not filecmp.cmp(site / path.removeprefix("python/"), tree.folder / path, False):
                raise SeriesError(f"{path} differs between git apply -p2 on a wheel and the tree")


def _check_whole(series: Series, tree: Tree, worker: Worker, released: State) -> list[str]:
    """Problems of the series as a whole."""
    try:
        tree.reset()
        tree.apply([series.path(patch) for patch in series.patches])
    except SeriesError as error:
        return [f"in order: {error}"]
    again = written(tree)
    problems = [
        f"{patch.file}: not as git writes it (upstream.py refresh)"
        for patch in series.patches
        if again.get(patch.file) != series.path(patch).read_bytes()
    ]
    given = worker.run(
        tree.folder,
        tests=[test for patch in series.patches for test in patch.tests],
        symbols=_symbols(series),
        defaults=True,
        probe=True,
    )
    problems += _failed("all applied: ", given) + [f"all applied: no {n}" for n in _absent(given)]
    for name, value in released.defaults.items():
        if given.defaults.get(name) != value:
            problems.append(f"the default of {name} was {value}, is {given.defaults.get(name)}")
    for name, value in released.probe.items():
        if given.probe.get(name) != value:
            problems.append(f"upstream's kit {name}: was {value}, is {given.probe.get(name)}")
    return problems + surface_problems(tree)


def _failed(prefix: str, state: State) -> list[str]:
    return [f"{prefix}{name}: {said}" for name, said in state.tests.items() if said != _OK]


def _absent(state: State) -> list[str]:
    return [name for name, there in state.symbols.items() if not there]


def _symbols(series: Series) -> list[str]:
    return [name for patch in series.patches for name in patch.symbols]
