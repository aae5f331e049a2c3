# SPDX-License-Identifier: Apache-2.0
"""What a start would say of a model and its arena, before any weights are loaded.

The kinds come from config.json by the planner's reader (which is tested against built models); they
are checked and sized by the functions that the server calls once the model is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_jenga.core.configs.find import find_config
from sglang_jenga.core.configs.read import ServeFlags, StoredModel, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import shown
from sglang_jenga.core.sizes import format_bytes
from sglang_jenga.core.sizing import SizedArena, size_arena
from sglang_jenga.sglang_ext.arena_source import ArenaSource, require_one_request
from sglang_jenga.sglang_ext.config import load_config
from sglang_jenga.sglang_ext.kernel_checks import gpu_of, known_of, require_served, warnings
from sglang_jenga.sglang_ext.refusals import check_backends

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of an arena, as far as they are known. exact: they are its size, not a bound."""

    arena_bytes: int
    exact: bool
    source: ArenaSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """The arena in one sentence, what would be warned of, and how its kernels were checked."""

    arena: str
    warnings: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


def foresee(server_args: Any) -> Foreseen:
    """The arena that resolved server arguments would get.

    Raises:
        ConfigError: what the server would refuse once it has built the model.
    """
    from sglang.srt.arg_groups.overrides import (
        attention_backends_of,
        model_config_of,
        resolving_view,
    )

    from sglang_jenga.sglang_ext.setup import embedding_cache_bytes

    view = resolving_view(server_args)
    path = _config_file(view.model_path, view.revision)
    if path is None:
        missing = f"no {_CONFIG} of {shown(view.model_path)} lies here"
        return Foreseen(arena=f"{missing}: sized when the model is loaded")
    if json.loads(view.json_model_override_args or "{}"):
        return Foreseen(
            arena="--json-model-override-args changes the model: sized when it is loaded"
        )
    try:
        model = _read(path, server_args)
    except ConfigError as error:
        return Foreseen(
            arena=f"not planned from {_CONFIG}, but sized when the model is loaded: {error}"
        )
    if model.family.page_one and view.page_size != 1:
        raise ConfigError(
            f"{model.architecture} is served with --page-size 1 only, not {view.page_size}"
        )
    backends, gpu = attention_backends_of(view), gpu_of(view.device)
    check_backends(backends, model.kinds.window_policy)
    budget = _budget(view, model, embedding_cache_bytes(model_config_of(server_args)))
    try:
        sized = size_arena(
            model.specs,
            arena_bytes=budget.arena_bytes,
            page_tokens=view.page_size,
            window=model.kinds.window_policy,
            chunk_tokens=view.chunked_prefill_size,
        )
    except ConfigError as error:
        raise ConfigError(f"{error}. {budget.source.advice}.") from error
    require_one_request(
        sized, asked_tokens=view.context_length, page_tokens=view.page_size, source=budget.source
    )
    states = model.family.state_kernels if model.kinds.states is not None else None
    require_served(sized.plan, backends=backends, gpu=gpu, states=states)
    longest = sized.longest_request_tokens
    return Foreseen(
        arena=_sentence(model, sized, budget),
        warnings=warnings(sized.plan, backends=backends, gpu=gpu, tokens=longest),
        kernels=known_of(backends=backends, gpu=gpu, states=states),
    )


def _sentence(model: StoredModel, sized: SizedArena, budget: Budget) -> str:
    kinds = ", ".join(f"{kind.spec.name} (slot {kind.slot_bytes:,} B)" for kind in sized.plan.kinds)
    least = "" if budget.exact else "at most "
    return (
        f"{model.architecture}: {kinds}; {least}{format_bytes(budget.arena_bytes)}, "
        f"requests of up to {least}{sized.longest_request_tokens:,} tokens"
    )


def _config_file(model_path: str, revision: str | None) -> Path | None:
    """The model's configuration on this disk; nothing is downloaded beyond what resolution was."""
    local = Path(model_path) / _CONFIG
    if local.is_file():
        return local
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model_path, _CONFIG, revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read(path: Path, server_args: Any) -> StoredModel:
    """The model that one rank stores.

    Raises:
        ConfigError: the configuration cannot be planned.
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.environ import envs

    view, config = resolving_view(server_args), model_config_of(server_args)
    found = find_config(str(path))
    conv: Mapping[str, str | None] = {}
    if envs.SGLANG_MAMBA_CONV_DTYPE.is_set():
        conv = {"mamba_conv_dtype": envs.SGLANG_MAMBA_CONV_DTYPE.get()}
    flags = ServeFlags(
        tp=view.tp_size // max(view.attn_dp_size or 1, 1),
        dtype=str(config.dtype).removeprefix("torch."),
        kv_cache_dtype=view.kv_cache_dtype,
        mamba_ssm_dtype=view.mamba_ssm_dtype,
        enable_multimodal=bool(config.is_multimodal),
        **conv,
    )
    return read_model(found.config, flags, quant=found.quant)


def _budget(view: Any, model: StoredModel, side_cache_bytes: int) -> Budget:
    """The arena's own size, or the most that the flags and this machine could give it.

    Raises:
        ConfigError: the size asked for is more than the machine has.
    """
    most = int(_device_bytes(view.device) * view.mem_fraction_static)
    wanted = load_config().arena_bytes
    if wanted is not None:
        source = ArenaSource.of_size(wanted)
        source.require_within(most, view.mem_fraction_static, of="at most")
        return Budget(arena_bytes=wanted, exact=True, source=source)
    limit = view.max_total_tokens
    slot_bytes = sum(spec.payload_bytes for spec in model.stock_specs)
    pools = most
    if limit is not None and not model.kinds.states:
        pools = (limit + view.page_size) * slot_bytes + side_cache_bytes
    if pools < most:
        return Budget(arena_bytes=pools, exact=False, source=ArenaSource.of_tokens(limit))
    source = ArenaSource.of_share(view.mem_fraction_static)
    return Budget(arena_bytes=most, exact=False, source=source)


def _device_bytes(device: str) -> int:
    """All memory of the device: what a server finds free is less."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1])
    import psutil

    return int(psutil.virtual_memory().total)
