# SPDX-License-Identifier: Apache-2.0
"""What ends a server after its processes were started, said by the launcher before it starts any.

Ranks that have no cores of their own, attention replicas, and a cache backend whose plugin is left
out. Each check raises ValueError with what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

_BIND = "SGLANG_CPU_OMP_THREADS_BIND"
_PLUGINS = "SGLANG_PLUGINS"
_GROUP = "sglang.srt.plugins"


def register() -> None:
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook("handle_data_parallelism")(_check_first)


def _check_first(server_args: Any, previous: Callable[[Any], None]) -> None:
    from sglang.srt.arg_groups.overrides import resolving_view

    view = resolving_view(server_args)
    if view.device == "cpu":
        require_known_cache(view.radix_cache_backend)
        require_no_attention_replicas(view.attn_dp_size)
        if view.nnodes == 1:
            require_cores(view.tp_size, view.dp_size, view.pp_size)
    previous(server_args)


def require_known_cache(backend: str | None) -> None:
    """SGLang looks the name up in its scheduler, after the weights are loaded."""
    from sglang.srt.mem_cache.registry import registered_radix_cache_backends

    known = registered_radix_cache_backends()
    if not backend or backend in known:
        return
    allowed = os.environ.get(_PLUGINS)
    installed = sorted({ep.name for ep in entry_points(group=_GROUP)})
    what = (
        f"--radix-cache-backend {backend[:80]!r} is not registered: SGLang knows {known or 'none'}"
    )
    if allowed:
        left_out = [name for name in installed if name not in _names(allowed)]
        raise ValueError(
            f"{what}. {_PLUGINS}={allowed[:200]!r} leaves out the installed plugins "
            f"{', '.join(left_out) or '(none)'}: add the one that brings the backend, unset "
            f"{_PLUGINS}, or drop --radix-cache-backend."
        )
    raise ValueError(
        f"{what}. Installed plugins are {', '.join(installed) or '(none)'}: install the one that "
        "brings the backend (a failed one is logged as 'Failed to execute general plugin' above), "
        "or drop --radix-cache-backend."
    )


def _names(listed: str) -> set[str]:
    return {name.strip() for name in listed.split(",")}


def require_no_attention_replicas(attn_dp_size: int | None) -> None:
    """Their ranks pad batches to a common length, which the attention backends here cannot."""
    if (attn_dp_size or 1) > 1:
        raise ValueError(
            f"attention data parallelism (--enable-dp-attention or --attn-dp-size, {attn_dp_size} "
            "replicas) does not run on a plain CPU: its padded batches need a graph runner's "
            "attention backend. Instead: use --dp-size without it, or --tp-size."
        )


def require_cores(tp_size: int, dp_size: int, pp_size: int) -> None:
    """A rank runs on the cores of one NUMA node, or on those that the user names for it."""
    from sglang.srt.utils.common import get_cpu_ids_by_node

    ranks = tp_size * dp_size * pp_size
    bound = os.environ.get(_BIND, "all")
    groups = len(get_cpu_ids_by_node()) if bound == "all" else len(bound.split("|"))
    if ranks <= groups:
        return
    have = (
        f"this machine has {groups} NUMA node{'s' * (groups != 1)} and {_BIND} is not set"
        if bound == "all"
        else f"{_BIND}={bound[:200]!r} names {groups}"
    )
    cores = os.cpu_count() or 1
    example = "|".join(str(rank % cores) for rank in range(min(ranks, 8)))
    raise ValueError(
        f"--tp-size {tp_size} * --dp-size {dp_size} * --pp-size {pp_size} are {ranks} ranks, each "
        f"of which needs cores of its own, but {have}: set {_BIND} to the cores of each rank, "
        f"such as {example!r}{' ...' * (ranks > 8)}, or start fewer ranks."
    )
