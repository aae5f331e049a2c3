# SPDX-License-Identifier: Apache-2.0
"""SGLang's model of a configuration, built without weights, and the kinds that a jenga server makes
of it: its own code, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.sglang_ext.setup import classify, setup_of


@contextmanager
def ranks_of(tp: int, fields: dict[str, Any]) -> Iterator[None]:
    """Rank 0 of ``tp``, without processes: what model files ask of SGLang's contexts."""
    from sglang.srt.runtime_context import get_context, get_parallel

    ids = dict.fromkeys(("tp_rank", "attn_tp_rank", "moe_tp_rank"), 0)
    group = SimpleNamespace(rank_in_group=0, rank=0, world_size=tp, cpu_group=None)
    groups = dict.fromkeys(("tp_group", "attn_tp_group", "moe_tp_group"), group)
    one = SimpleNamespace(
        rank_in_group=0, rank=0, world_size=1, is_first_rank=True, is_last_rank=True, cpu_group=None
    )
    with ExitStack() as stack:
        stack.enter_context(get_context().override_server_args(**fields))
        stack.enter_context(
            get_parallel().override(**ids, **groups, pp_group=one, moe_ep_rank=0, pp_rank=0)
        )
        yield


def built_model(checkpoint: Path, *, multimodal: bool | None = None) -> torch.nn.Module:
    """SGLang's model of a configuration, on one rank, without weights."""
    with _built(checkpoint, 1, multimodal) as (model, _):
        return model


def kinds_of_built_model(
    checkpoint: Path,
    *,
    tp: int = 1,
    multimodal: bool | None = None,
    kv_cache_dtype: torch.dtype | None = None,
) -> tuple[KindSpec, ...]:
    """Kinds that a server reads off its model (``classify``), for the K/V type it would take."""
    with _built(checkpoint, tp, multimodal) as (model, config):
        runner = SimpleNamespace(
            model=model,
            model_config=config,
            device="cpu",
            page_size=1,
            use_mla_backend=False,
            is_hybrid_swa=config.is_hybrid_swa,
            sliding_window_size=None,
        )
        classify(runner)
        return setup_of(config).kinds.specs(kv_cache_dtype or config.dtype)


@contextmanager
def _built(
    checkpoint: Path, tp: int, multimodal: bool | None
) -> Iterator[tuple[torch.nn.Module, Any]]:
    """A model and its ``ModelConfig``, while SGLang's contexts are those of its server."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.loader import _initialize_model

    from sglang_jenga.models import register_models

    register_models(override=True)
    fields = {
        "model_path": str(checkpoint),
        "device": "cpu",
        "tp_size": tp,
        "radix_cache_backend": "jenga",
        "attention_backend": "jenga_ref",
    }
    with ranks_of(tp, fields):
        config = ModelConfig(str(checkpoint), enable_multimodal=multimodal)
        torch.set_default_dtype(config.dtype)
        try:
            with torch.device("meta"):
                model = _initialize_model(config, LoadConfig())
        finally:
            torch.set_default_dtype(torch.float32)
        yield model, config
