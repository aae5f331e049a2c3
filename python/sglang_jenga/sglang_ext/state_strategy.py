# SPDX-License-Identifier: Apache-2.0
"""Which of SGLang's state caching strategies a jenga server runs.

SGLang offers three: ``no_buffer`` keeps a state only at the exact end of a request and needs no
overlap scheduling; ``extra_buffer`` lets the kernels write snapshots of a state while it advances,
into two more slots per request; ``extra_buffer_lazy`` takes the second of them when it is needed.

Here every slot beyond a request's own state is taken when it is about to be written
(:mod:`sglang_jenga.sglang_ext.state_rows`), so the lazy strategy costs nothing and is always used
where the model's kernels write snapshots. With a page of one token a request's own state at its end
can be cached as it is, so snapshots while decoding have no use and are switched off.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sglang_jenga.core.errors import ConfigError

logger = logging.getLogger(__name__)

LAZY: Final = "extra_buffer_lazy"
#: ``--mamba-track-interval`` for "never": longer than any request, and a multiple of any grid.
NEVER_TOKENS: Final = 1 << 30


def resolve_state_strategy(server_args: Any) -> None:
    """Declare the strategy for a model whose states the radix cache keeps; others are untouched."""
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
        supports_mamba_cache_extra_buffer,
    )

    cfg = resolving_view(server_args)
    if not cfg.uses_mamba_radix_cache:
        return
    strategy = cfg.mamba_radix_cache_strategy
    undecided = server_args.mamba_radix_cache_strategy == "auto"
    if strategy == "no_buffer" and undecided:
        hf_config = model_config_of(server_args).hf_config
        if supports_mamba_cache_extra_buffer(cfg, hf_config) and _platform_takes_snapshots():
            strategy = "extra_buffer"
    if strategy == "no_buffer":
        return
    if cfg.enable_mixed_chunk and (cfg.page_size or 1) > 1:
        raise ConfigError(
            f"--enable-mixed-chunk with --page-size {cfg.page_size} does not work with "
            "--radix-cache-backend jenga for a model with recurrent states: SGLang then ends a "
            "chunk inside a page, and files the state under the page's beginning. Instead: use "
            "--page-size 1 or drop --enable-mixed-chunk."
        )
    declared: dict[str, Any] = {"mamba_radix_cache_strategy": LAZY}
    if cfg.page_size in (None, 1):
        declared["mamba_track_interval"] = NEVER_TOKENS
    logger.info("Jenga: state caching: %s", declared)
    declare_resolution(server_args, "jenga", **declared)


def _platform_takes_snapshots() -> bool:
    from sglang.srt.arg_groups.mamba_hook import _platform_supports_mamba_cache_extra_buffer

    return bool(_platform_supports_mamba_cache_extra_buffer())
