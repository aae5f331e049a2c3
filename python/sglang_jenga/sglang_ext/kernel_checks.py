# SPDX-License-Identifier: Apache-2.0
"""Kernels against the plan of a server: what is refused, what is warned of, what is known.

The rules are integers (:mod:`sglang_jenga.core.kernels`); here they meet the device, the resolved
backends and SGLang's classes of recurrent models. Server and doctor call the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import (
    DELTA_NET,
    LIGHTNING,
    MAMBA1,
    MAMBA2,
    SHORT_CONVOLUTION,
    UNCHECKED,
    AttentionUse,
    StateKernels,
    architecture,
    attention_problems,
    attention_warnings,
    state_problem,
)
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.sglang_ext.kernel_table import CPU, KernelRow, Verdict, rows_for

#: Operations of the table's ``states`` that a family runs.
STATE_OPERATIONS = {
    MAMBA2.name: (
        "conv1d update and prefill (triton)",
        "SSM update (triton)",
        "snapshot copies (triton)",
    ),
    DELTA_NET.name: (
        "conv1d update and prefill (triton)",
        "gated delta net decode (triton)",
        "gated delta net prefill",
        "snapshot copies (triton)",
    ),
    SHORT_CONVOLUTION.name: ("conv1d of CUDA (short convolutions, LFM2)",),
    LIGHTNING.name: ("lightning and seg_la (linear attention)",),
}


def gpu_of(device: Any) -> str | None:
    """The generation of the GPU that a server runs on, None: it runs on a CPU."""
    if not str(device).startswith("cuda"):
        return None
    import torch

    return architecture(torch.cuda.get_device_capability()[0])


def state_kernels(recurrent: Any) -> StateKernels:
    """What is known of the kernels of a recurrent model, by the class of its configuration.

    An allow-list: a class that is not named here has kernels that nobody checked.
    """
    from sglang.srt import configs

    from sglang_jenga.models.jamba_config import JambaConfig

    if isinstance(recurrent, configs.BailingHybridConfig):
        return UNCHECKED if recurrent.use_kda else LIGHTNING
    known: tuple[tuple[StateKernels, tuple[type, ...]], ...] = (
        (
            MAMBA2,
            (configs.GraniteMoeHybridConfig, configs.FalconH1Config, configs.NemotronHConfig),
        ),
        (
            DELTA_NET,
            (configs.Qwen3NextConfig, configs.Qwen3_5Config, configs.Qwen3_5MoeConfig),
        ),
        (SHORT_CONVOLUTION, (configs.Lfm2Config, configs.Lfm2MoeConfig, configs.Lfm2VlConfig)),
        (LIGHTNING, (configs.MiniCPMHybridConfig,)),
        (MAMBA1, (JambaConfig,)),
    )
    return next((kernels for kernels, types in known if isinstance(recurrent, types)), UNCHECKED)


def attention_use(backends: Sequence[str | None], gpu: str | None) -> AttentionUse | None:
    """``backends``: the resolved prefill and decode backends. None: there is no GPU, or SGLang
    named no backend."""
    prefill, decode = backends
    if gpu is None or prefill is None or decode is None:
        return None
    return AttentionUse(prefill=prefill, decode=decode, gpu=gpu)


def require_served(
    plan: ArenaPlan,
    *,
    backends: Sequence[str | None],
    gpu: str | None,
    states: StateKernels | None,
) -> None:
    """Refuse a plan that a kernel of this server would read wrongly, or copy whole.

    Raises:
        ConfigError: every problem at once, each with what to use instead.
    """
    if gpu is None:
        return
    use = attention_use(backends, gpu)
    problems = [] if use is None else [*attention_problems(plan, use)]
    if states is not None and (problem := state_problem(plan, states)) is not None:
        problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))


def warnings(
    plan: ArenaPlan, *, backends: Sequence[str | None], gpu: str | None, tokens: int
) -> tuple[str, ...]:
    """What is right and slow, in sentences. ``tokens``: a context to state the price for."""
    use = attention_use(backends, gpu)
    return () if use is None else attention_warnings(plan, use, tokens)


def known_of(
    *, backends: Sequence[str | None], gpu: str | None, states: StateKernels | None
) -> tuple[str, ...]:
    """One line per operation of these backends on this GPU (None: a CPU): how it was checked."""
    where = gpu or CPU
    prefill, decode = backends
    lines: list[str] = []
    for backend in dict.fromkeys(name for name in (decode, prefill) if name is not None):
        phases = [p for p, name in (("prefill", prefill), ("decode", decode)) if name == backend]
        rows = [row for row in rows_for(backend, where) if _in_phases(row, phases)]
        lines += [_line(row, where) for row in rows]
        if not rows:
            lines.append(f"{backend} on {where}: unchecked, no row speaks of it")
    lines += [_line(row, where) for row in rows_for("pools", where)]
    if states is not None and gpu is not None:
        operations = STATE_OPERATIONS.get(states.name, ())
        rows = [row for row in rows_for("states", where) if row.operation in operations]
        lines += [_line(row, where) for row in rows]
        if not rows:
            lines.append(f"states ({states.name}) on {where}: {states.why}")
    return tuple(lines)


def _in_phases(row: KernelRow, phases: Sequence[str]) -> bool:
    """Whether a server that uses the backend in these phases, and was not refused, runs this."""
    if row.verdict == "refused":
        return False
    said = {"decode": ("decode",), "prefill": ("prefill", "extend")}
    return any(word in row.operation for phase in phases for word in said[phase])


#: Verdicts of the table as boot log, doctor and docs/backends.md say them.
VERDICT_WORDS: dict[Verdict, str] = {
    "ran": "proved by running",
    "compiled": "proved by compiling",
    "read": "proved by reading",
    "unchecked": "unchecked",
    "refused": "refused",
}


def _line(row: KernelRow, where: str) -> str:
    evidence = f" ({', '.join(row.evidence)})" if row.evidence else ""
    limit = f", while {row.limit}" if row.limit else ""
    finding = f": {row.finding}" if row.verdict in ("unchecked", "refused") else ""
    known = VERDICT_WORDS[row.verdict] + evidence + limit + finding
    return f"{row.backend} {row.operation} on {where}: {known}"
