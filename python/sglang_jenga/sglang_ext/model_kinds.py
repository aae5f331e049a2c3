# SPDX-License-Identifier: Apache-2.0
"""Layer kinds, read off the built model.

Names and configs lie (SGLang computes full attention for some models whose config has windows), so
the truth is what each attention layer will do: its window, its chunk, its heads and dims. Layers
that share an earlier layer's K/V carry that layer's id and therefore cost nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec, RowSpec, attention_kind
from sglang_jenga.core.policies import (
    KV_POLICY,
    Chunked,
    Cross,
    Full,
    Policy,
    TokenPolicy,
    Vision,
    Window,
)
from sglang_jenga.sglang_ext.states import StateLayers

FULL = "full"
WINDOW = "window"
CROSS = "cross"
VISION = "vision"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """What one attention layer of the built model stores and reads (sizes of this rank)."""

    layer_id: int
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    policy: Policy

    def heads(self) -> tuple[int, int, int]:
        return self.num_kv_heads, self.k_head_dim, self.v_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKinds:
    """The kinds of a model: ``full`` always, ``window`` (layers that forget: sliding windows,
    chunks, any policy that slides), ``cross`` (layers that attend to images) and recurrent
    ``states`` sometimes.

    ``embedding``: (elements, dtype) of one token's embedding, where the model has an encoder whose
    results are cached.
    """

    full: tuple[AttentionLayer, ...]
    window: tuple[AttentionLayer, ...] = ()
    cross: tuple[AttentionLayer, ...] = ()
    states: StateLayers | None = None
    embedding: tuple[int, torch.dtype] | None = None

    @property
    def window_policy(self) -> TokenPolicy | None:
        """The policy of the window kind: of its layers' the one that reads furthest back."""
        return max((layer.policy for layer in self.window), key=_reach, default=None)

    @property
    def span_tokens(self) -> int | None:
        """What SGLang calls the sliding window of the model."""
        return None if self.window_policy is None else self.window_policy.span_tokens

    def specs(self, dtype: torch.dtype) -> tuple[KindSpec, ...]:
        """Kind specs for a KV cache of ``dtype``: full, window, cross, states, vision, those there
        are."""
        out = [_spec(FULL, Full(), self.full, dtype)]
        if self.window_policy is not None:
            out.append(_spec(WINDOW, self.window_policy, self.window, dtype))
        if self.cross:
            out.append(_spec(CROSS, Cross(), self.cross, dtype))
        if self.states is not None:
            out.append(self.states.spec())
        if self.embedding is not None:
            out.append(_embedding_spec(*self.embedding))
        return tuple(out)


def _spec(
    name: str, policy: Policy, layers: tuple[AttentionLayer, ...], dtype: torch.dtype
) -> KindSpec:
    heads, k_dim, v_dim = layers[0].heads()
    return attention_kind(
        name,
        policy,
        [layer.layer_id for layer in layers],
        num_kv_heads=heads,
        k_head_dim=k_dim,
        v_head_dim=v_dim,
        itemsize=dtype.itemsize,
    )


def _embedding_spec(elements: int, dtype: torch.dtype) -> KindSpec:
    row = RowSpec(
        layer_id=0,
        part="embed",
        row_bytes=elements * dtype.itemsize,
        itemsize_bytes=dtype.itemsize,
    )
    return KindSpec(name=VISION, policy=Vision(), rows=(row,))


def attention_layers(model: torch.nn.Module, chunk_tokens: int | None) -> list[AttentionLayer]:
    """Attention layers of ``model`` in layer order, layers that share K/V counted once.

    Args:
        model: a built SGLang model; its ``RadixAttention`` modules are inspected.
        chunk_tokens: the model's ``attention_chunk_size``, for layers marked chunked-local.

    Raises:
        ConfigError: a layer of a family this version cannot keep in the arena, named.
    """
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    found: dict[int, AttentionLayer] = {}
    for name, module in model.named_modules():
        if not isinstance(module, RadixAttention):
            continue
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
                _unsupported(
                    where, "K/V shared between different head shapes", f"{other} and {layer}"
                )
            )
        if other.policy != layer.policy:
            # A sharing layer may read further back than the owner: keep what both need.
            found[module.layer_id] = max(other, layer, key=lambda found: _reach(found.policy))
    if not found:
        raise ConfigError(
            "the model has no attention layer that stores K/V: nothing for the arena to hold"
        )
    return [found[i] for i in sorted(found)]


def _policy(module: Any, chunk_tokens: int | None, where: str) -> Policy:
    """What the layer says itself (``kv_policy``, see docs/new-kind.md), or what SGLang says."""
    stated = getattr(module, KV_POLICY, None)
    window = module.sliding_window_size
    if stated is not None:
        if not isinstance(stated, TokenPolicy) or stated.span_tokens is None:
            raise ConfigError(
                _unsupported(
                    where, f"{KV_POLICY} {stated}", "only policies with a span can be stated"
                )
            )
        return stated
    if module.is_cross_attention:
        return Cross()
    if module.use_irope:
        if not chunk_tokens:
            raise ConfigError(
                _unsupported(where, "chunked-local attention", "the model states no chunk size")
            )
        return Chunked(chunk_tokens=chunk_tokens)
    if window is not None and window > 0:
        return Window(window_tokens=window)
    return Full()


def _reach(policy: Policy) -> float:
    tokens = policy.most_needed_tokens if isinstance(policy, TokenPolicy) else None
    return float("inf") if tokens is None else tokens


def _unsupported(where: str, what: str, why: str) -> str:
    return (
        f"--radix-cache-backend jenga does not support this model: {where} uses {what}: {why}. "
        "Drop --radix-cache-backend to serve it with SGLang's own pools."
    )


def group_layers(layers: Iterable[AttentionLayer], states: StateLayers | None = None) -> ModelKinds:
    """Sort layers into kinds.

    Raises:
        ConfigError: layers of one kind differ in heads or dims, windows are mixed with other
            policies, no layer attends to everything, cross attention lies beside windows or states,
            or a layer in between stores nothing (each named).
    """
    full: list[AttentionLayer] = []
    window: list[AttentionLayer] = []
    cross: list[AttentionLayer] = []
    sides = {Full: full, Cross: cross}
    for layer in layers:
        side = sides.get(type(layer.policy), window)
        if side and not _fit_together(side[0].policy, layer.policy):
            raise ConfigError(
                _unsupported(
                    f"layer {layer.layer_id}",
                    f"{layer.policy} attention beside {side[0].policy}",
                    f"layer {side[0].layer_id} is {side[0].policy}",
                )
            )
        side.append(layer)
    kinds = ModelKinds(full=tuple(full), window=tuple(window), cross=tuple(cross), states=states)
    _require_servable(kinds)
    return kinds


def _fit_together(one: Policy, other: Policy) -> bool:
    """Whether one of two policies keeps all that the other needs: windows do, of any length."""
    return one == other or (isinstance(one, Window) and isinstance(other, Window))


def _require_servable(kinds: ModelKinds) -> None:
    """Raise ConfigError naming the first layer that SGLang or the arena cannot address."""
    # One pool of SGLang's holds full and cross layers, and it has one shape.
    for side in ((*kinds.full, *kinds.cross), kinds.window):
        for layer in side:
            if layer.heads() != side[0].heads():
                raise ConfigError(
                    _unsupported(
                        f"layer {layer.layer_id}",
                        f"other K/V heads (heads, K dim, V dim) {layer.heads()}",
                        f"layer {side[0].layer_id}, in the same pool, has {side[0].heads()}",
                    )
                )
    if not kinds.full:
        first = (*kinds.window, *kinds.cross)[0]
        raise ConfigError(
            _unsupported(
                f"layer {first.layer_id}",
                f"{first.policy} attention like every other layer",
                "SGLang addresses requests by full-attention slots and there are none",
            )
        )
    if kinds.cross and (kinds.window or kinds.states is not None):
        raise ConfigError(
            _unsupported(
                f"layer {kinds.cross[0].layer_id}",
                "cross attention in a model with windows or recurrent states",
                "no model that SGLang serves combines them, so nothing was checked",
            )
        )
    ids = sorted(layer.layer_id for layer in (*kinds.full, *kinds.cross))
    gap = next((i for i, layer_id in enumerate(ids) if layer_id != i), None)
    if not kinds.window and kinds.states is None and gap is not None:
        raise ConfigError(
            _unsupported(
                f"layer {gap}",
                "no K/V while later layers store some",
                "SGLang finds K/V buffers of such a model by layer number, without gaps",
            )
        )


def read_model_kinds(
    model: torch.nn.Module, chunk_tokens: int | None, states: StateLayers | None = None
) -> ModelKinds:
    """Kinds of a built model. See :func:`attention_layers` and :func:`group_layers`.

    ``states``: what its recurrent layers keep, by SGLang's own account of the model.
    """
    return group_layers(attention_layers(model, chunk_tokens), states)
