# SPDX-License-Identifier: Apache-2.0
"""Jenga's own settings: environment variables are the base, flags are sugar that sets them.

Every SGLang process inherits the environment, so one mechanism reaches all of them. A variable that
starts with ``SGLANG_JENGA_`` and is not listed here is an error: a typo must not be silence.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import MOST_SHOWN, printable, shown
from sglang_jenga.core.sizes import parse_size

BACKEND_NAME = "jenga"
PREFIX = "SGLANG_JENGA_"
ARENA_SIZE = "SGLANG_JENGA_ARENA_SIZE"
REFERENCE_ATTENTION = "SGLANG_JENGA_REFERENCE_ATTENTION"
#: Read by the test suite only; listed so that it is not taken for a typo.
TEST_SEED = "SGLANG_JENGA_TEST_SEED"

KNOWN = (ARENA_SIZE, REFERENCE_ATTENTION, TEST_SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JengaConfig:
    """Settings of one server.

    arena_bytes: size of the arena; None takes the bytes the stock server would have taken.
    """

    arena_bytes: int | None = None


def load_config(environ: Mapping[str, str] | None = None) -> JengaConfig:
    """Settings from the environment.

    Raises:
        ConfigError: an unknown ``SGLANG_JENGA_*`` variable or a value that does not parse.
    """
    environ = os.environ if environ is None else environ
    for name in environ:
        if name.startswith(PREFIX) and name not in KNOWN:
            tails = [known.removeprefix(PREFIX) for known in KNOWN]
            close = difflib.get_close_matches(name.removeprefix(PREFIX), tails, n=1)
            meant = f", did you mean {PREFIX}{close[0]}?" if close else ""
            hint = meant or f": known are {', '.join(KNOWN)}"
            raise ConfigError(f"unknown setting {printable(name)[:MOST_SHOWN]}{hint}")
    size = environ.get(ARENA_SIZE)
    if size is not None and not size.strip():
        raise ConfigError(
            f"{ARENA_SIZE} (flag --jenga-arena-size) is set to {shown(size)}: write a size, such "
            "as 24GiB, or leave it out to take the stock size"
        )
    problem = _switch_problem(environ)
    if problem:
        raise ConfigError(problem)
    return JengaConfig(arena_bytes=None if size is None else parse_size(size, name=ARENA_SIZE))


def without_effect(environ: Mapping[str, str] | None = None) -> list[str]:
    """What a server without the backend should be told of its ``SGLANG_JENGA_*`` variables.

    They may be set for a whole machine, so such a server is warned, not refused.
    """
    environ = os.environ if environ is None else environ
    told = [
        f"{name}={shown(environ[name])} does nothing: this server runs without "
        f"--radix-cache-backend {BACKEND_NAME}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in (REFERENCE_ATTENTION, TEST_SEED)
    ]
    problem = _switch_problem(environ)
    return [*told, problem] if problem else told


def _switch_problem(environ: Mapping[str, str]) -> str:
    value = environ.get(REFERENCE_ATTENTION, "0")
    if value in ("0", "1"):
        return ""
    return f"{REFERENCE_ATTENTION}={shown(value)} is not a switch: write 1 or 0, or unset it"


def add_flags(parser: Any) -> None:
    """``--jenga-*`` flags of the server's argument parser."""
    group = parser.add_argument_group("jenga")
    group.add_argument(
        "--jenga-arena-size",
        default=None,
        metavar="SIZE",
        help="Bytes of the Jenga arena, such as 24GiB (sets SGLANG_JENGA_ARENA_SIZE). Default: "
        "what the KV pools of the stock server would take under the same flags.",
    )


def export_flags(args: Any, environ: MutableMapping[str, str] | None = None) -> None:
    """Put parsed ``--jenga-*`` values where every process of the server finds them.

    Raises:
        ConfigError: such a flag, but another backend: nothing would read it.
    """
    environ = os.environ if environ is None else environ
    size = getattr(args, "jenga_arena_size", None)
    if size is None:
        return
    backend = getattr(args, "radix_cache_backend", None)
    if backend != BACKEND_NAME:
        asked = "is not given" if backend is None else f"is {shown(backend)}"
        raise ConfigError(
            f"--jenga-arena-size (value {shown(size)}) is for --radix-cache-backend "
            f"{BACKEND_NAME}, which {asked}: add that flag, or drop this one."
        )
    environ[ARENA_SIZE] = size
