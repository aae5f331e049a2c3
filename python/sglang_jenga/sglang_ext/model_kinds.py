# SPDX-License-Identifier: Apache-2.0
"""Layer kinds, read off the built model.

Names and configs lie (SGLang computes full attention for some models whose config has windows), so
the truth is what each attention layer will do: its window, its chunk, its heads and dims. Layers
that share an earlier layer's K/V carry that layer's id and therefore cost nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.model_kinds import (
    CROSS,
    FULL,
    VISION,
    WINDOW,
    AttentionLayer,
    ModelKinds,
    StateLayers,
    group_layers,
    reach,
    unsupported,
)
from sglang_jenga.core.policies import KV_POLICY, Chunked, Cross, Full, Policy, TokenPolicy, Window

__all__ = [
    "CROSS",
    "FULL",
    "VISION",
    "WINDOW",
    "AttentionLayer",
    "ModelKinds",
    "attention_layers",
    "group_layers",
    "read_model_kinds",
]


def attention_layers(model: torch.nn.Module, chunk_tokens: int | None) -> list[AttentionLayer]:
    """Attention layers of ``model`` in layer order, layers that share K/V counted once.

    Args:
        model: a built SGLang model; its ``RadixAttention`` modules are inspected, also those that
            it keeps in plain lists and dicts.
        chunk_tokens: the model's ``attention_chunk_size``, for layers marked chunked-local.

    Raises:
        ConfigError: a layer of a family this version cannot keep in the arena, named.
    """
    from sglang.srt.layers.radix_attention import AttentionType

    found: dict[int, AttentionLayer] = {}
    for name, module in _attention_modules(model):
        where = f"layer {module.layer_id} ({name})"
        if module.attn_type is AttentionType.ENCODER_ONLY:
            continue  # reads the forward's own keys, stores nothing
        layer = AttentionLayer(
            layer_id=module.layer_id,
            num_kv_heads=module.tp_k_head_num,
            k_head_dim=module.qk_head_dim,
            v_head_dim=module.v_head_dim,
            policy=_policy(module, chunk_tokens, where),
        )
        other = found.setdefault(module.layer_id, layer)
        if other.heads() != layer.heads():
            raise ConfigError(
                unsupported(
                    where, "K/V shared between different head shapes", f"{other} and {layer}"
                )
            )
        if other.policy != layer.policy:
            # A sharing layer may read further back than the owner: keep what both need.
            found[module.layer_id] = max(other, layer, key=lambda found: reach(found.policy))
    if not found:
        raise ConfigError(
            "the model has no attention layer that stores K/V: nothing for the arena to hold"
        )
    return [found[i] for i in sorted(found)]


def _attention_modules(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Every ``RadixAttention`` below ``model``, with its name. SGLang's Transformers models keep
    theirs in a plain dict, ``attention_instances``, which torch does not look into."""
    from sglang.srt.layers.radix_attention import RadixAttention

    for name, module in model.named_modules():
        if isinstance(module, RadixAttention):
            yield name, module
        for field, value in vars(module).items():
            if field.startswith("_"):  # torch's own tables, seen above
                continue
            if isinstance(value, dict):
                entries = list(value.items())
            else:
                entries = list(enumerate(value)) if isinstance(value, list | tuple) else []
            for key, entry in entries:
                if isinstance(entry, RadixAttention):
                    yield f"{name}.{field}[{key!r}]".lstrip("."), entry


def _policy(module: Any, chunk_tokens: int | None, where: str) -> Policy:
    """What the layer says itself (``kv_policy``, see docs/new-kind.md), or what SGLang says."""
    stated = getattr(module, KV_POLICY, None)
    window = module.sliding_window_size
    if stated is not None:
        if not isinstance(stated, TokenPolicy) or stated.span_tokens is None:
            raise ConfigError(
                unsupported(
                    where, f"{KV_POLICY} {stated}", "only policies with a span can be stated"
                )
            )
        return stated
    if module.is_cross_attention:
        return Cross()
    if module.use_irope:
        if not chunk_tokens:
            raise ConfigError(
                unsupported(where, "chunked-local attention", "the model states no chunk size")
            )
        return Chunked(chunk_tokens=chunk_tokens)
    if window is not None and window > 0:
        return Window(window_tokens=window)
    return Full()


def read_model_kinds(
    model: torch.nn.Module, chunk_tokens: int | None, states: StateLayers | None = None
) -> ModelKinds:
    """Kinds of a built model. See :func:`attention_layers` and :func:`group_layers`.

    ``states``: what its recurrent layers keep, by SGLang's own account of the model.
    """
    return group_layers(attention_layers(model, chunk_tokens), states)
