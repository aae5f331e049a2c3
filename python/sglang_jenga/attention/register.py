# SPDX-License-Identifier: Apache-2.0
"""How SGLang learns of `jenga_ref`, and when it is selected.

`register_reference_backend(enabled)` belongs in a plugin's load function: argparse reads the
backend choices right after plugins load. The backend then serves in three cases:

| case | selected |
| --- | --- |
| `--attention-backend jenga_ref` | always, on any device |
| no attention flag, device cpu, `enabled(server_args)` | instead of torch_native or intel_amx |
| no attention flag, device cpu, `SGLANG_JENGA_REFERENCE_ATTENTION=1` | likewise, on any cache |

Otherwise nothing changes: a backend that the user names is left alone.
Upstream seams: `attention_registry`, `choices`, `resolution_hooks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

BACKEND_NAME = "jenga_ref"
ENVIRONMENT_SWITCH = "SGLANG_JENGA_REFERENCE_ATTENTION"

_SOURCE = "sglang_jenga.attention"
_BACKEND_FIELDS = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
_CPU_DEFAULTS = frozenset({None, "torch_native", "intel_amx"})

_registered = False


def register_reference_backend(enabled: Callable[[Any], bool] = lambda server_args: False) -> None:
    """Make `jenga_ref` known to SGLang and select it on CPU where `enabled(server_args)` says so.

    `enabled` is called while the server arguments are resolved, in the main process, and must only
    read them. A second call in a process does nothing.
    """
    global _registered
    if _registered:
        return
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    add_attention_backend_choices([BACKEND_NAME])
    register_attention_backend(BACKEND_NAME)(_create_backend)

    @register_resolution_hook("handle_model_specific_adjustments")
    def pass_model_lists(server_args: Any, previous: Callable[[Any], None]) -> None:
        fields = _fields_to_select(server_args, enabled)
        if fields:
            _pass_model_lists(server_args, fields, previous)
        else:
            previous(server_args)

    # The decision falls here, after every step and plugin that fills in a CPU backend.
    @register_resolution_hook("handle_attention_backend_compatibility")
    def select_reference_backend(server_args: Any, previous: Callable[[Any], None]) -> None:
        previous(server_args)
        fields = _fields_to_select(server_args, enabled)
        if fields:
            _select(server_args, fields)

    _registered = True


def _create_backend(runner: Any) -> Any:
    from sglang_jenga.attention.backend import ReferenceAttnBackend

    if runner.use_mla_backend:
        raise ValueError(
            f"--attention-backend {BACKEND_NAME} serves K/V pools only, and this model uses latent "
            "attention (MLA): choose a backend for MLA."
        )
    return ReferenceAttnBackend(runner)


def _fields_to_select(server_args: Any, enabled: Callable[[Any], bool]) -> list[str]:
    """Which of the three backend fields resolve to `jenga_ref`; empty when none does."""
    from sglang.srt.arg_groups.overrides import resolving_view

    view = resolving_view(server_args)
    asked = [name for name in _BACKEND_FIELDS if getattr(view, name) == BACKEND_NAME]
    if asked:
        return asked
    # The record holds what the user gave, the view also what resolution filled in since.
    left_open = all(getattr(server_args, name) is None for name in _BACKEND_FIELDS)
    if not (left_open and view.device == "cpu" and view.attention_backend in _CPU_DEFAULTS):
        return []
    if os.environ.get(ENVIRONMENT_SWITCH) == "1" or enabled(server_args):
        return ["attention_backend"]
    return []


def _pass_model_lists(server_args: Any, fields: list[str], previous: Callable[[Any], None]) -> None:
    """Run the step that checks the backend's name against a list per model: none can know ours.

    It sees a name which the model's list accepts and which decides nothing else.
    """
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
    )

    architecture = model_config_of(server_args).hf_config.architectures[0]
    stand_in = _stand_in(architecture, resolving_view(server_args).device)
    declare_resolution(server_args, _SOURCE, **dict.fromkeys(fields, stand_in))
    previous(server_args)
    declare_resolution(server_args, _SOURCE, **dict.fromkeys(fields, BACKEND_NAME))


def _select(server_args: Any, fields: list[str]) -> None:
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    declare_resolution(server_args, _SOURCE, **dict.fromkeys(fields, BACKEND_NAME))
    # Tiles are planned on the host for each forward: nothing here can be captured in a graph.
    for phase in (Phase.DECODE, Phase.PREFILL):
        graphs = resolving_view(server_args).cuda_graph_config
        declare_resolution(
            server_args,
            _SOURCE,
            cuda_graph_config=with_phase(graphs, phase, backend=Backend.DISABLED),
        )


def _stand_in(architecture: str, device: str) -> str:
    """A stock backend name that `handle_model_specific_adjustments` accepts for the model."""
    if architecture.startswith("Exaone"):
        return "triton"
    if architecture.startswith("Lfm2"):
        return "torch_native"
    return "intel_amx" if device == "cpu" else "triton"
