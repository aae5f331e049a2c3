# SPDX-License-Identifier: Apache-2.0
"""A terminal taken over for a while: alternate screen, no cursor, keys as they are pressed.

Whatever ends it (a key, Ctrl-C, SIGTERM, an error) gives the terminal back as it was.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import Any

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class LiveTerminal:
    """Standard output and input, both terminals. A context manager."""

    def __init__(self) -> None:
        self._out = sys.stdout
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._attributes: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> LiveTerminal:
        for number, handler in ((signal.SIGTERM, _end), (signal.SIGTSTP, self._pause)):
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self) -> None:
        if self._keys is not None:
            self._attributes = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write(_ENTER)

    def _give_back(self) -> None:
        self._write(_LEAVE)
        if self._keys is not None and self._attributes is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._attributes)

    def _pause(self, number: int, _: FrameType | None) -> None:
        """Ctrl-Z: a shell in between finds its terminal as it was."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # continues here
        signal.signal(number, self._pause)
        self._take()

    @property
    def size(self) -> os.terminal_size:
        """Columns and rows now, also after the window was resized."""
        found = os.get_terminal_size(self._out.fileno())
        return found if found.columns and found.lines else os.terminal_size((80, 24))

    def show(self, lines: Sequence[str]) -> None:
        """Replace what is shown, without a moment of empty screen."""
        body = f"{_REST_OF_LINE}\n".join(lines)
        self._write(f"{_HOME}{body}{_REST_OF_LINE}{_REST_OF_SCREEN}")

    def key(self, timeout_seconds: float) -> str | None:
        """The next key, None after so long without one."""
        keys = [] if self._keys is None else [self._keys]
        ready, _, _ = select.select(keys, [], [], timeout_seconds)
        if not ready or self._keys is None:
            return None
        pressed = os.read(self._keys, 1).decode(errors="replace")
        if not pressed:  # the terminal is gone
            raise SystemExit(0)
        return pressed

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
