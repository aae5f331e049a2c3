# SPDX-License-Identifier: Apache-2.0
"""Terminal output: plain text everywhere, a live progress line and bold only where welcome."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

_SPARSE_SECONDS = 15.0


class Screen:
    """Where a command prints. ``NO_COLOR``, ``TERM=dumb`` and pipes get no escape byte."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = sys.stdout if stream is None else stream
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.live = self._out.isatty() and not dumb
        self.colour = self.live and not os.environ.get("NO_COLOR")
        self._next_sparse = 0.0
        self._line_open = False

    def heading(self, text: str) -> None:
        """A title with a blank line above it."""
        self.line("")
        self.line(f"\x1b[1m{text}\x1b[0m" if self.colour else text)

    def line(self, text: str = "") -> None:
        """One whole line, clear of any progress line."""
        self.end_progress()
        print(text, file=self._out, flush=True)

    def piece(self, text: str) -> None:
        """A part of a line, as it streams in."""
        self.end_progress()
        self._out.write(text)
        self._out.flush()

    def progress(self, text: str, elapsed_seconds: float) -> None:
        """``text`` and the seconds: in place on a terminal, else a line every 15 seconds."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            line = f"{text} {elapsed_seconds:3.0f} s"[:width]
            self._out.write("\r" + line.ljust(width) + "\r")
            self._out.flush()
            self._line_open = True
        elif elapsed_seconds >= self._next_sparse:
            self._next_sparse = elapsed_seconds + _SPARSE_SECONDS
            print(f"{text} {elapsed_seconds:.0f} s", file=self._out, flush=True)

    def end_progress(self) -> None:
        """Wipe the progress line, if there is one."""
        if self._line_open:
            self._out.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._line_open = False


def table(rows: Sequence[Sequence[str]], *, right: bool = True) -> list[str]:
    """Aligned columns: the first to the left, the others to the right (or all to the left)."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i and right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def indented(lines: Iterable[str]) -> list[str]:
    """Two spaces before each line."""
    return [f"  {line}" for line in lines]
