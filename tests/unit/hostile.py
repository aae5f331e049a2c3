# SPDX-License-Identifier: Apache-2.0
"""Servers that nobody would want, made of bytes: in-process on a clock of their own, and real."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from sglang_jenga.cli import http_json

#: What a server sends: seconds of silence, then bytes. Behind the last of them it closes.
Script = Sequence[tuple[float, bytes]]


class Clock:
    """Time that passes where a command waits, and nowhere else."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class Wire:
    """A connected socket whose other end follows a script."""

    def __init__(self, clock: Clock, script: Script) -> None:
        self._clock, self._timeout = clock, 0.0
        self._left = [(wait, data) for wait, data in script if data]
        self.sent = b""

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def send(self, data: Any) -> int:
        self.sent += bytes(data)
        return len(data)

    def recv_into(self, buffer: Any) -> int:
        if not self._left:
            return 0
        wait, data = self._left.pop(0)
        if wait >= self._timeout:
            self._clock.seconds += self._timeout
            raise TimeoutError("timed out")
        self._clock.seconds += wait
        taken = data[: len(buffer)]
        memoryview(buffer)[: len(taken)] = taken
        if data[len(taken) :]:
            self._left.insert(0, (0.0, data[len(taken) :]))
        return len(taken)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Network:
    """All connections of the commands: each is answered by ``answer(path)``. ``asked``: paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.wires: list[Wire] = []
        self.answer: Callable[[int], Script] = lambda _: ()
        monkeypatch.setattr(http_json, "time", self.clock)
        monkeypatch.setattr(http_json, "_connected", self._connect)

    def _connect(self, *_: object) -> Wire:
        self.wires.append(Wire(self.clock, self.answer(len(self.wires))))
        return self.wires[-1]

    @property
    def asked(self) -> list[bytes]:
        """Method and path of every request."""
        return [wire.sent.split(b" HTTP/")[0] for wire in self.wires]


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """One whole answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("utf-8", "surrogateescape") + body


def chunked(body: bytes, size: int) -> bytes:
    """The same in chunks of ``size`` bytes."""
    out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begin in range(0, len(body), size):
        piece = body[begin : begin + size]
        out += f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    return out + b"0\r\n\r\n"


@contextlib.contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a real server that does ``behave`` with each connection, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                behave(connection)

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()


def drip(connection: socket.socket) -> None:
    """A byte every 50 ms, for ever: each read is answered in time."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    """As much as the other side takes."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n")
    block = b"[" * 2**20
    while True:
        connection.sendall(block)
