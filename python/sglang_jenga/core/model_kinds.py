# SPDX-License-Identifier: Apache-2.0
"""Layers of one model sorted into kinds: one code for the planner and for the runtime.

The planner states the layers from a config.json (:mod:`sglang_jenga.core.configs`), the runtime
reads them off the built model (:mod:`sglang_jenga.sglang_ext.model_kinds`); what becomes of them is
decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec, RowSpec, attention_kind, state_kind
from sglang_jenga.core.policies import Cross, Full, Policy, TokenPolicy, Vision, Window

FULL = "full"
WINDOW = "window"
CROSS = "cross"
STATE = "state"
VISION = "vision"


class ElementType(Protocol):
    """Type of one stored number: a ``torch.dtype``, or :class:`core.configs.dtypes.Dtype`."""

    @property
    def itemsize(self) -> int: ...


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
class StateLayers:
    """What the recurrent layers of a model keep per request (sizes of this rank).

    conv_shapes: one shape per convolution state of a layer.
    temporal_shape: the recurrent state of a layer; None where the convolution is all there is.
    """

    layer_ids: tuple[int, ...]
    conv_shapes: tuple[tuple[int, ...], ...]
    conv_dtype: ElementType
    temporal_shape: tuple[int, ...] | None
    temporal_dtype: ElementType

    def spec(self) -> KindSpec:
        return state_kind(
            STATE,
            self.layer_ids,
            conv_shapes=self.conv_shapes,
            conv_itemsize=self.conv_dtype.itemsize,
            temporal_shape=self.temporal_shape,
            temporal_itemsize=self.temporal_dtype.itemsize,
        )


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
    embedding: tuple[int, ElementType] | None = None

    @property
    def window_policy(self) -> TokenPolicy | None:
        """The policy of the window kind: of its layers' the one that reads furthest back."""
        policies = (layer.policy for layer in self.window)
        return max((p for p in policies if isinstance(p, TokenPolicy)), key=reach, default=None)

    @property
    def span_tokens(self) -> int | None:
        """What SGLang calls the sliding window of the model."""
        return None if self.window_policy is None else self.window_policy.span_tokens

    def specs(self, dtype: ElementType) -> tuple[KindSpec, ...]:
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
    name: str, policy: Policy, layers: tuple[AttentionLayer, ...], dtype: ElementType
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


def _embedding_spec(elements: int, dtype: ElementType) -> KindSpec:
    row = RowSpec(
        layer_id=0,
        part="embed",
        row_bytes=elements * dtype.itemsize,
        itemsize_bytes=dtype.itemsize,
    )
    return KindSpec(name=VISION, policy=Vision(), rows=(row,))


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
                unsupported(
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
                    unsupported(
                        f"layer {layer.layer_id}",
                        f"other K/V heads (heads, K dim, V dim) {layer.heads()}",
                        f"layer {side[0].layer_id}, in the same pool, has {side[0].heads()}",
                    )
                )
    if not kinds.full:
        first = (*kinds.window, *kinds.cross)[0]
        raise ConfigError(
            unsupported(
                f"layer {first.layer_id}",
                f"{first.policy} attention like every other layer",
                "SGLang addresses requests by full-attention slots and there are none",
            )
        )
    if kinds.cross and (kinds.window or kinds.states is not None):
        raise ConfigError(
            unsupported(
                f"layer {kinds.cross[0].layer_id}",
                "cross attention in a model with windows or recurrent states",
                "no model that SGLang serves combines them, so nothing was checked",
            )
        )
    ids = sorted(layer.layer_id for layer in (*kinds.full, *kinds.cross))
    gap = next((i for i, layer_id in enumerate(ids) if layer_id != i), None)
    if not kinds.window and kinds.states is None and gap is not None:
        raise ConfigError(
            unsupported(
                f"layer {gap}",
                "no K/V while later layers store some",
                "SGLang finds K/V buffers of such a model by layer number, without gaps",
            )
        )


def reach(policy: Policy) -> float:
    """How many tokens a policy reads back, for comparing two of them."""
    tokens = policy.most_needed_tokens if isinstance(policy, TokenPolicy) else None
    return float("inf") if tokens is None else tokens


def unsupported(where: str, what: str, why: str) -> str:
    """What to say of a layer that the arena cannot hold."""
    return (
        f"--radix-cache-backend jenga does not support this model: {where} uses {what}: {why}. "
        "Drop --radix-cache-backend to serve it with SGLang's own pools."
    )
