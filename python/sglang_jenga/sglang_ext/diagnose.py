# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-jenga doctor`` finds out inside an environment that can serve.

Runs in a process of its own, for it loads SGLang and its plugins as a server does:

    python -m sglang_jenga.sglang_ext.diagnose FINDINGS.json [server arguments]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import ATTENTION_BACKENDS
from sglang_jenga.core.printable import printable, shown
from sglang_jenga.sglang_ext import hooks
from sglang_jenga.sglang_ext.config import BACKEND_NAME, export_flags, load_config
from sglang_jenga.sglang_ext.foresee import foresee
from sglang_jenga.sglang_ext.refusals import check_early

#: Seconds for a process to start, import SGLang and answer.
_CHILD_SECONDS = 180
#: The distribution that an attention backend needs.
_NEEDS = {"flashinfer": "flashinfer", "triton": "triton", "fa3": "sgl_kernel", "fa4": "sgl_kernel"}
ON_CPU = "jenga_ref"
_STOCK_CPU = "CpuSRTPlatform"


def finding(name: str, problems: Sequence[str], fine: str) -> dict[str, Any]:
    """JSON-ready: a check, whether it is fine, and what to say."""
    return {"check": name, "ok": not problems, "says": list(problems) or [fine]}


def how_attached() -> dict[str, int]:
    """How many attachments of each sort this SGLang leaves: wrapped, overridden, private, native.

    wrapped: SGLang's HookRegistry changes a function of SGLang. overridden: a class of ours
    overrides a private method. private: a private symbol is called. native: a seam is used instead.
    """
    left = hooks.needed()
    wrapped = sum(hook.kind != "uses" for hook in left)
    overridden = sum(hook.reason.startswith("overridden") for hook in left)
    return {
        "wrapped": wrapped,
        "overridden": overridden,
        "private": len(left) - wrapped - overridden,
        "native": len(hooks.HOOKS) - len(left),
    }


def attached() -> list[str]:
    """Problems of this process: the plugin's backend and its hooks, after SGLang loaded plugins."""
    from sglang.srt.mem_cache.registry import registered_radix_cache_backends
    from sglang.srt.plugins import load_plugins

    load_plugins()
    if BACKEND_NAME not in registered_radix_cache_backends():
        allowed = os.environ.get("SGLANG_PLUGINS")
        why = (
            f"SGLANG_PLUGINS={shown(allowed)} leaves it out"
            if allowed
            else "pip install sglang-jenga"
        )
        return [f"SGLang does not know the backend {BACKEND_NAME!r}: {why}"]
    return hooks.check_symbols() + hooks.check_applied()


def attached_in_a_child() -> list[str]:
    """The same in a process started as SGLang starts its scheduler."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        try:
            return pool.apply_async(attached).get(_CHILD_SECONDS)
        except Exception as error:
            return [f"a process of its own failed: {type(error).__name__}: {error}"]


def platform() -> tuple[list[str], str]:
    """Problems of the hardware side, and what SGLang runs on."""
    import torch
    from sglang.srt.platforms import current_platform

    name = type(current_platform).__name__
    if torch.cuda.is_available():
        return [], f"{name}, {torch.cuda.get_device_name(0)}"
    if name == _STOCK_CPU:
        return [f"{name}: SGLang's own needs AMX; pip install ./sglang_portable_cpu"], ""
    return [], f"{name}, no GPU: a test bed, not speed"


def backends() -> str:
    """Which of the attention backends that read the arena can run here."""
    import torch

    if not torch.cuda.is_available():
        return f"{ON_CPU} (the others need a GPU: {', '.join(_gpu_backends())})"
    found = [b for b in _gpu_backends() if find_spec(_NEEDS.get(b, "torch")) is not None]
    return "installed: " + ", ".join(found)


def _gpu_backends() -> list[str]:
    return [backend for backend in ATTENTION_BACKENDS if backend != ON_CPU]


#: Stands for a model that the command line does not name; SGLang resolves nothing for it.
_NO_MODEL = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a start would make of a command line.

    problems: why it would end, in the server's words. arena: the memory it would get, where that
    is known before the weights are. warnings, kernels: what it would log of its kernels then.
    """

    problems: tuple[str, ...] = ()
    arena: str = ""
    warnings: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


def command_line(arguments: Sequence[str]) -> Verdict:
    """What a server would make of these arguments, by the code that the launcher runs.

    With a model they are resolved and the arena is foreseen; without one only what is written is
    looked at.
    """
    from sglang.srt.server_args import prepare_server_args

    written = _words(arguments)
    try:
        parsed, complaint = _parse(written)
        if parsed is None:
            return Verdict(problems=(complaint,))
        if parsed.radix_cache_backend != BACKEND_NAME:
            chosen = shown(parsed.radix_cache_backend)
            return Verdict(
                problems=(
                    f"--radix-cache-backend is {chosen}: this server would not run on Jenga's "
                    f"arena. Instead: --radix-cache-backend {BACKEND_NAME}.",
                )
            )
        if parsed.model_path == _NO_MODEL:
            export_flags(parsed)
            check_early(parsed)
            return Verdict()
        server_args = prepare_server_args(written)
        server_args.resolve_once()
        server_args.check_server_args()
        seen = foresee(server_args)
        return Verdict(arena=seen.arena, warnings=seen.warnings, kernels=seen.kernels)
    except ConfigError as error:
        return Verdict(problems=tuple(str(error).splitlines()))
    except Exception as error:  # whatever SGLang raises: the user reads it here, not later
        said = f"SGLang refuses it: {type(error).__name__}: {error}"
        return Verdict(problems=tuple(printable(line) for line in said.splitlines()))


def _words(arguments: Sequence[str]) -> list[str]:
    """The words as ``sglang serve`` reads them, with jenga asked for where no backend is."""
    words = [*arguments]
    if words[:2] == ["sglang", "serve"]:
        words = words[2:]
    if words and not words[0].startswith("-"):
        words = ["--model-path", *words]
    return ["--radix-cache-backend", BACKEND_NAME, *words]


def _parse(words: list[str]) -> tuple[argparse.Namespace | None, str]:
    """The arguments, or None and what argparse says of them."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            if "--config" in words:
                words = ConfigArgumentMerger(parser).merge_config_with_args(words)
            return parser.parse_args(["--model-path", _NO_MODEL, *words]), ""
    except SystemExit as ended:
        if not ended.code:
            return None, "it asks for help or a version: no server would start"
        _, _, complaint = said.getvalue().strip().rpartition(": error: ")
        return None, f"SGLang does not understand it: {printable(complaint)}"


def settings() -> list[str]:
    try:
        load_config()
    except ConfigError as error:
        return [str(error)]
    return []


def diagnose(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """All findings, in the order in which a start would meet them."""
    hooked = f"{len(hooks.HOOKS)} of {len(hooks.HOOKS)} hooks as expected"
    found = [finding("settings", settings(), "SGLANG_JENGA_* variables parse")]
    found.append(finding("launcher process", attached(), f"plugin loaded, {hooked}"))
    found.append(finding("scheduler process", attached_in_a_child(), f"plugin loaded, {hooked}"))
    counts = ", ".join(f"{number} {how}" for how, number in how_attached().items())
    found.append(finding("attachments", [], counts))
    problems, fine = platform()
    found.append(finding("platform", problems, fine))
    found.append(finding("attention backends", [], backends()))
    if found[1]["ok"]:
        said = printable(" ".join(arguments)) or "the defaults"
        verdict = command_line(arguments)
        found.append(finding("command line", verdict.problems, f"nothing refused: {said}"))
        if verdict.arena:
            found.append(finding("arena", (), verdict.arena))
        if verdict.kernels:
            found.append(_kernels(verdict))
    return found


def _kernels(verdict: Verdict) -> dict[str, Any]:
    """How the kernels of this start were checked, what they cost first."""
    return {"check": "kernels", "ok": True, "says": [*verdict.warnings, *verdict.kernels]}


def main(argv: Sequence[str], check: Callable[[Sequence[str]], Any] = diagnose) -> int:
    """Write the findings to the file ``argv[0]``; the rest of ``argv`` is for the server."""
    with redirect_stdout(sys.stderr):  # SGLang prints while it loads
        found = check(argv[1:])
    Path(argv[0]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
