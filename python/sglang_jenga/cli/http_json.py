# SPDX-License-Identifier: Apache-2.0
"""HTTP as the commands speak it: one request, one answer, all of it within limits.

The other side is not trusted. However it answers (never, slowly, without end, elsewhere), the
caller has an answer or an error by the deadline, in bounded memory. A redirect is reported and not
followed: whoever redirects would choose who gets the API key. Proxies of the environment are not
used.
"""

from __future__ import annotations

import io
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit

_PORTS = {"http": 80, "https": 443}
#: Bytes of the body of an error that are read.
_ERROR_BYTES = 64 * 2**10
_BLOCK_BYTES = 64 * 2**10


class BadUrl(ValueError):
    """No address of a server; the message says why, without the address."""


class NoAnswer(Exception):
    """No whole answer came in time; the message says why."""


class TooLong(Exception):
    """The answer has more bytes than are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a server is. ``path``: what stands before every path, such as ``/prefix``."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """``host:port`` or a whole address, ``http`` or ``https``.

        Raises:
            BadUrl: anything else.
        """
        if not url.isprintable() or " " in url:
            raise BadUrl("it has a blank or a control character")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
            if ":" not in host:
                host = host.encode("idna").decode("ascii")
        except ValueError as error:  # UnicodeError is one
            raise BadUrl(str(error)) from None
        if parts.scheme not in _PORTS:
            raise BadUrl(f"{parts.scheme}:// is neither http:// nor https://")
        if parts.username is not None or parts.password is not None:
            raise BadUrl("it has a user or a password: an API key is given with --api-key")
        if parts.query or parts.fragment or "?" in url or "#" in url:
            raise BadUrl("it ends with ?... or #...: give the address alone")
        if not host or port == 0 or len(host) > 255:
            raise BadUrl("it names no host and port")
        path = quote(parts.path.rstrip("/"), safe="/%")
        port = _PORTS[parts.scheme] if port is None else port
        return cls(scheme=parts.scheme, host=host, port=port, path=path)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def netloc(self) -> str:
        """Host and, unless it is the usual one, port: what the ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Deadline:
    """So many seconds from now on, however many waits they are spent in."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left_seconds(self) -> float:
        """More than nothing.

        Raises:
            TimeoutError: nothing is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer. reason: of the status line. location: where a redirect points, else empty.

    body: all of it; of an error no more than its beginning.
    """

    status: int
    reason: str
    location: str
    body: bytes


def ask(
    origin: Origin,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str],
    deadline: Deadline,
    most_bytes: int,
) -> Reply:
    """``POST`` if there is a body, else ``GET``. ``most_bytes``: of the answer, headers included.

    Raises:
        NoAnswer: none that is whole, by the deadline.
        TooLong: more than ``most_bytes``.
    """
    try:
        with _connected(origin, deadline) as found:
            connection = HTTPConnection(origin.host, origin.port)
            connection.sock = cast(Any, _Channel(found, deadline, most_bytes))
            sent = {"Host": origin.netloc, "Connection": "close", **headers}
            connection.request("GET" if body is None else "POST", origin.path + path, body, sent)
            response = connection.getresponse()
            fine = 200 <= response.status < 300
            return Reply(
                status=response.status,
                reason=response.reason,
                location=response.getheader("Location", "") or "",
                body=_body(response) if fine else _beginning(response),
            )
    except TimeoutError:
        raise NoAnswer(f"no whole answer within {deadline.seconds:g} s") from None
    except HTTPException as error:
        raise NoAnswer(f"no HTTP comes from there ({type(error).__name__}: {error})") from error
    except (OSError, ValueError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error


def _body(response: Any) -> bytes:
    blocks = []
    while block := response.read(_BLOCK_BYTES):
        blocks.append(block)
    if response.length:
        raise NoAnswer(f"the answer ended {response.length:,} bytes early")
    return b"".join(blocks)


def _beginning(response: Any) -> bytes:
    """Of an error's body; that it is one is known without it."""
    try:
        found: bytes = response.read(_ERROR_BYTES)
    except (OSError, HTTPException, ValueError, TooLong):
        return b""
    return found


# ---- the connection ------------------------------------------------------------------------------


def _connected(origin: Origin, deadline: Deadline) -> socket.socket:
    addresses = _addresses(origin, deadline)
    failed: OSError = OSError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        found = socket.socket(family, kind, protocol)
        try:
            found.settimeout(deadline.left_seconds() / (len(addresses) - index))
            found.connect(address)
            return _encrypted(found, origin.host, deadline) if origin.scheme == "https" else found
        except OSError as error:
            failed = error
            found.close()
        except BaseException:
            found.close()
            raise
    raise failed


def _addresses(origin: Origin, deadline: Deadline) -> list[Any]:
    """Looked up in a thread: the system's resolver takes no deadline."""
    found: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            found.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        result = found.get(timeout=deadline.left_seconds())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result


def _encrypted(plain: socket.socket, host: str, deadline: Deadline) -> socket.socket:
    import ssl

    plain.settimeout(deadline.left_seconds())
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


class _Channel:
    """A socket as ``http.client`` uses one; the caller closes the real one."""

    def __init__(self, sock: socket.socket, deadline: Deadline, most_bytes: int) -> None:
        self._socket, self._deadline, self._most_bytes = sock, deadline, most_bytes

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._socket.settimeout(self._deadline.left_seconds())
            left = left[self._socket.send(left) :]

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._socket, self._deadline, self._most_bytes))

    def close(self) -> None:
        pass


class _Incoming(io.RawIOBase):
    """What the server sends: each wait ends at the deadline, and so many bytes are taken."""

    def __init__(self, sock: socket.socket, deadline: Deadline, most_bytes: int) -> None:
        self._socket, self._deadline, self._left = sock, deadline, most_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._deadline.left_seconds())
        received = self._socket.recv_into(buffer)
        self._left -= received
        if self._left < 0:
            raise TooLong
        return received
