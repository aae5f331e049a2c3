# SPDX-License-Identifier: Apache-2.0
"""From a built model and a byte budget to a plan: what each server-start hook does.

    load_model          read kinds off the model, tell SGLang which layers are windowed
    config_from_budget  how many bytes the stock pools would take -> plan -> capacities
    _init_pools         the buffer, the pools, the allocator, the request table (assembly.py)

The pieces travel on the model config, which all three hooks share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import StateKernels
from sglang_jenga.core.model_kinds import STATE
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.sizing import size_arena as core_size_arena
from sglang_jenga.sglang_ext.apart import require_known_rows, require_rows_in_layers
from sglang_jenga.sglang_ext.arena_bytes import (
    ArenaBytes,
    Share,
    embedding_share,
    state_share,
    token_share,
)
from sglang_jenga.sglang_ext.arena_source import ArenaSource, require_one_request
from sglang_jenga.sglang_ext.config import load_config
from sglang_jenga.sglang_ext.kernel_checks import gpu_of, require_served, state_kernels, warnings
from sglang_jenga.sglang_ext.model_kinds import ModelKinds, read_model_kinds
from sglang_jenga.sglang_ext.refusals import check_backends, require_checked_encoder
from sglang_jenga.sglang_ext.states import state_layers

if TYPE_CHECKING:
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_jenga_setup"


@dataclass(frozen=True, slots=True, kw_only=True)
class StockSplit:
    """How SGLang classified the model on its own: what its pools would hold."""

    is_hybrid: bool
    window_layers: tuple[int, ...]
    full_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaSetup:
    """What the hooks know so far about one model."""

    kinds: ModelKinds
    stock: StockSplit
    state_kernels: StateKernels | None = None
    plan: ArenaPlan | None = None
    demand: DemandModel | None = None


def setup_of(model_config: Any) -> ArenaSetup:
    """The setup that ``load_model``'s hook left.

    Raises:
        ConfigError: it left none, so the hook did not run.
    """
    setup = getattr(model_config, _ATTRIBUTE, None)
    if setup is None:
        raise ConfigError(
            "--radix-cache-backend jenga: the model was loaded without Jenga's hook, its layer "
            "kinds are unknown. Check the log for 'Failed to apply hooks'."
        )
    return setup


# ---- after the model is built ----------------------------------------------------------------


def classify(runner: Any) -> None:
    """Read kinds off ``runner.model`` and make SGLang see the same split of layers.

    Raises:
        ConfigError: a layer the arena cannot hold, named.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.runtime_context import attention_backends

    config = runner.model_config
    require_known_rows(config, latent=runner.use_mla_backend)
    require_rows_in_layers(runner.model, config.hf_config.architectures[0])
    if config.is_encoder_decoder:
        require_checked_encoder(config.hf_config.architectures, runner.page_size)
    recurrent = mambaish_config(config)
    states = None if recurrent is None else state_layers(recurrent.mamba2_cache_params)
    kinds = read_model_kinds(runner.model, config.attention_chunk_size, states)
    if embedding_cache_bytes(config):
        kinds = replace(kinds, embedding=(config.hidden_size, config.dtype))
    if config.is_encoder_decoder:
        runner.model.images_apart = True
    check_backends(attention_backends(), kinds.window_policy)
    stock = StockSplit(
        is_hybrid=config.is_hybrid_swa,
        window_layers=tuple(config.swa_attention_layer_ids or ()),
        full_layers=tuple(config.full_attention_layer_ids or ()),
    )
    kernels = None if recurrent is None else state_kernels(recurrent)
    setattr(config, _ATTRIBUTE, ArenaSetup(kinds=kinds, stock=stock, state_kernels=kernels))
    hybrid = bool(kinds.window)
    runner.is_hybrid_swa = config.is_hybrid_swa = hybrid
    config.swa_attention_layer_ids = _ids(kinds.window) if hybrid else None
    config.full_attention_layer_ids = _ids(kinds.full) if hybrid else None
    if hybrid:
        runner.sliding_window_size = kinds.span_tokens


def embedding_cache_bytes(config: Any) -> int:
    """Bytes that the stock server keeps for embeddings of images, 0: it caches none.

    Encoder-decoder models have no such cache: their images are K/V.
    """
    from sglang.srt.environ import envs

    if not config.is_multimodal or config.is_encoder_decoder:
        return 0
    return int(envs.SGLANG_VLM_CACHE_SIZE_MB.get()) * 2**20


def is_cuda(device: Any) -> bool:
    return str(device).startswith("cuda")


def _ids(layers: tuple[Any, ...]) -> list[int]:
    return [layer.layer_id for layer in layers]


# ---- from bytes to a plan ----------------------------------------------------------------------


@contextmanager
def _stock_view(kvc: KVCacheConfigurator, stock: StockSplit) -> Iterator[None]:
    """Let SGLang's own sizing see the model the way it would without Jenga."""
    config, info, hybrid = kvc.model_config, kvc.layer_info, kvc.is_hybrid_swa
    kvc.is_hybrid_swa = config.is_hybrid_swa = stock.is_hybrid
    if stock.is_hybrid:
        kvc.layer_info = msgspec.structs.replace(
            info,
            swa_attention_layer_ids=list(stock.window_layers),
            full_attention_layer_ids=list(stock.full_layers),
        )
    try:
        yield
    finally:
        kvc.layer_info = info
        kvc.is_hybrid_swa = config.is_hybrid_swa = hybrid


def stock_pools(
    original: Callable[..., MemoryPoolConfig],
    kvc: KVCacheConfigurator,
    budget_bytes: int,
    cap_tokens: int | None,
    stock: StockSplit,
) -> tuple[int, ArenaSource]:
    """Bytes the stock server's KV pools would occupy under the same flags, sink pages included, and
    the flag that decided them.

    Raises:
        ConfigError: so few that SGLang makes no pools of them.
    """
    from sglang.srt.model_executor.pool_configurator import create_memory_pool_configurator
    from sglang.srt.runtime_context import get_schedule

    with _stock_view(kvc, stock):
        cells = create_memory_pool_configurator(kvc)
        limit, share = get_schedule().max_total_tokens, get_schedule().mem_fraction_static
        capped = limit is not None and limit * cells._cell_size < budget_bytes
        source = ArenaSource.of_tokens(limit) if capped else ArenaSource.of_share(share)
        try:
            sizes = original(kvc, budget_bytes, cap_tokens=cap_tokens)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ConfigError(
                "the arena takes the bytes of the stock server's pools, and under "
                f"{source.setting} those cannot hold one request with --page-size "
                f"{kvc.page_size}. {source.advice}."
            ) from error
        page = kvc.page_size
        if stock.is_hybrid:
            full = (sizes.full_max_total_num_tokens + page) * cells._full_cell_bytes()
            window = (sizes.swa_max_total_num_tokens + page) * cells._swa_cell_bytes()
            return int(full + window), source
        return int((sizes.max_total_num_tokens + page) * cells._cell_size), source


def stock_state_share(kvc: KVCacheConfigurator) -> Share:
    """The stock server's pool of states under the same flags, its sink slot included."""
    from sglang.srt.runtime_context import get_schedule

    schedule = get_schedule()
    asked = kvc.server_args.max_mamba_cache_size
    if kvc.mambaish_config is None:
        return state_share(0, 0, schedule, asked)
    per_state = kvc.mambaish_config.mamba2_cache_params.mamba_cache_per_req
    num_states = schedule.max_mamba_cache_size + 1
    return state_share(int(num_states * per_state), num_states, schedule, asked)


def size_arena(
    original: Callable[..., MemoryPoolConfig],
    kvc: KVCacheConfigurator,
    budget_bytes: int,
    *,
    cap_tokens: int | None = None,
) -> MemoryPoolConfig:
    """Plan the arena for ``budget_bytes`` and state what it can hold in SGLang's terms.

    Raises:
        ConfigError: the arena is too small for one request, or larger than the budget.
    """
    from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig
    from sglang.srt.runtime_context import attention_backends, get_context, get_schedule

    setup = setup_of(kvc.model_config)
    wanted = load_config().arena_bytes
    # SGLang has set its pool of states and its cache of embeddings aside: the budget is what that
    # leaves.
    apart = (
        stock_state_share(kvc),
        embedding_share(embedding_cache_bytes(kvc.model_config)),
    )
    apart_bytes = sum(share.num_bytes for share in apart)
    if wanted is None:
        pools, source = stock_pools(original, kvc, budget_bytes, cap_tokens, setup.stock)
        stock = ArenaBytes(shares=(token_share(pools, get_schedule()), *apart))
        logger.info("Jenga: %s", stock.describe())
        wanted = stock.total
    else:
        source = ArenaSource.of_size(wanted)
        source.require_within(budget_bytes + apart_bytes, get_schedule().mem_fraction_static)
    try:
        sized = core_size_arena(
            setup.kinds.specs(kvc.kv_cache_dtype),
            arena_bytes=wanted,
            page_tokens=kvc.page_size,
            window=setup.kinds.window_policy,
            chunk_tokens=get_schedule().chunked_prefill_size,
        )
    except ConfigError as error:
        raise ConfigError(f"{error}. {source.advice}.") from error
    plan, demand, longest = sized.plan, sized.demand, sized.longest_request_tokens
    require_one_request(
        sized,
        asked_tokens=kvc.server_args.context_length,
        page_tokens=kvc.page_size,
        source=source,
    )
    backends, gpu = attention_backends(), gpu_of(kvc.device)
    require_served(plan, backends=backends, gpu=gpu, states=setup.state_kernels)
    for slow in warnings(plan, backends=backends, gpu=gpu, tokens=longest):
        logger.warning("Jenga: %s", slow)
    if longest < kvc.model_config.context_len:
        logger.warning(
            "Jenga: the arena holds requests of up to %d tokens, the model allows %d: longer "
            "requests are refused. %s for more.",
            longest,
            kvc.model_config.context_len,
            source.advice,
        )
    setattr(kvc.model_config, _ATTRIBUTE, replace(setup, plan=plan, demand=demand))
    if setup.kinds.states is not None:
        # SGLang admits no more requests at once than it has states: here, as many as could fit.
        most = plan.usable_large_pages * plan.kind(STATE).slots_per_large_page
        get_context().override("jenga.arena", max_mamba_cache_size=most)
    if setup.kinds.cross:
        # SGLang's idle check counts text in this number; admission knows the longest request.
        text = plan.usable_large_pages * plan.kinds[0].slots_per_large_page
        return MemoryPoolConfig(max_total_num_tokens=text)
    if not setup.kinds.window:
        return MemoryPoolConfig(max_total_num_tokens=longest)
    return MemoryPoolConfig(
        max_total_num_tokens=longest,
        full_max_total_num_tokens=longest,
        swa_max_total_num_tokens=plan.usable_large_pages * plan.kinds[1].slots_per_large_page,
    )
