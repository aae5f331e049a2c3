# SPDX-License-Identifier: Apache-2.0
"""What ``patches/VERSION/series.toml`` says of each patch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

PATCHES = Path(__file__).resolve().parents[2] / "patches"
#: The release that the patches in the repository are written against.
RELEASE = "0.5.23"
KINDS = ("fix", "seam", "feature")


class SeriesError(Exception):
    """The series or a patch of it is not as it claims to be; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One patch file and what it claims.

    file: name below the series' folder, ``NNNN-*.patch``.
    kind: ``fix`` (its tests fail without it), ``seam`` or ``feature`` (its symbols are absent
        without it).
    after: numbers of the patches it needs; empty: it applies to the release alone.
    symbols: dotted paths that exist with the patch and not without it.
    tests: test files that it adds, in upstream's layout.
    problem: what is wrong or missing, in a sentence.
    evidence: a command that shows it.
    overlaps: upstream threads on the same code.
    removes: attachments of sglang-jenga that it makes needless, by target.
    unused: why sglang-jenga does not use its symbols yet; empty: it does.
    """

    file: str
    kind: str
    problem: str
    evidence: str
    tests: tuple[str, ...]
    after: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    overlaps: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    unused: str = ""

    @property
    def number(self) -> str:
        return self.file.split("-", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A patch that was considered and is not sent, and why."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All patches for one release, in the order in which they apply."""

    folder: Path
    patches: tuple[Patch, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def release(self) -> str:
        return self.folder.name

    def path(self, patch: Patch) -> Path:
        return self.folder / patch.file

    def needed_by(self, patch: Patch) -> tuple[Patch, ...]:
        """The patches that ``patch`` stands on, in order, without itself."""
        numbers: set[str] = set(patch.after)
        for earlier in reversed(self.patches):
            if earlier.number in numbers:
                numbers.update(earlier.after)
        return tuple(p for p in self.patches if p.number in numbers)


def load(release: str = RELEASE, root: Path = PATCHES) -> Series:
    """Read a series.

    Raises:
        SeriesError: an unknown key or kind, a missing or unlisted file, a wrong order.
    """
    folder = root / release
    table = tomllib.loads((folder / "series.toml").read_text(encoding="utf-8"))
    series = Series(
        folder=folder,
        patches=tuple(_read(Patch, row) for row in table.get("patch", ())),
        left_out=tuple(_read(LeftOut, row) for row in table.get("left_out", ())),
    )
    listed = [patch.file for patch in series.patches]
    present = sorted(path.name for path in folder.glob("*.patch"))
    if listed != present:
        raise SeriesError(
            f"{folder}/series.toml lists {len(listed)} patches, the folder holds {len(present)}; "
            f"in one only: {sorted(set(listed) ^ set(present)) or 'none, the order differs'}"
        )
    for place, patch in enumerate(series.patches):
        _require_sane(patch, {earlier.number for earlier in series.patches[:place]})
    return series


def _require_sane(patch: Patch, earlier: set[str]) -> None:
    problems = []
    if patch.kind not in KINDS:
        problems.append(f"its kind is {patch.kind!r}, not one of {', '.join(KINDS)}")
    if not set(patch.after) <= earlier:
        problems.append(f"it needs {', '.join(sorted(set(patch.after) - earlier))}, not before it")
    if not patch.tests:
        problems.append("it has no test")
    if patch.kind != "fix" and not patch.symbols:
        problems.append(f"a {patch.kind} names the symbols that it adds")
    if patch.unused and patch.removes:
        problems.append("what is not used makes no attachment needless")
    if problems:
        raise SeriesError(f"{patch.file}: {'; '.join(problems)}")


def _read(kind: type, row: dict[str, object]) -> object:
    known = {field.name for field in fields(kind)}
    unknown = set(row) - known
    if unknown:
        raise SeriesError(f"series.toml: unknown {', '.join(sorted(unknown))} in {row}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
