# SPDX-License-Identifier: Apache-2.0
"""Shapes of recurrent states on one rank, as SGLang splits them (its ``mamba_utils``)."""

from __future__ import annotations

from sglang_jenga.core.configs.dtypes import Dtype
from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.model_kinds import StateLayers


def head_states(
    fields: Fields,
    layer_ids: tuple[int, ...],
    tp: int,
    *,
    channels: int,
    groups: int,
    heads: int,
    head_dim: int,
    state_size: int,
    conv_width: int,
    conv: Dtype,
    temporal: Dtype,
    groups_copied: bool = False,
) -> StateLayers:
    """States with heads (Mamba-2, gated delta net).

    The convolution runs over the channels and, per group, two vectors of ``state_size``. A single
    group is copied to every rank; ``groups_copied``: so are several that do not split.

    conv    [(channels + 2 * groups * state_size) / tp, conv_width - 1]
    state   [heads / tp, head_dim, state_size]
    """
    if groups % tp:
        if groups > 1 and not groups_copied:
            raise ConfigError(
                f"{fields.architecture}: {groups} groups of states do not split over --tp {tp}, "
                "and SGLang copies a single group only: use a divisor"
            )
        groups = tp
    mixed = channels + 2 * groups * state_size
    return StateLayers(
        layer_ids=layer_ids,
        conv_shapes=((_split(fields, "convolution channels", mixed, tp), conv_width - 1),),
        conv_dtype=conv,
        temporal_shape=(_split(fields, "state heads", heads, tp), head_dim, state_size),
        temporal_dtype=temporal,
    )


def channel_states(
    fields: Fields,
    layer_ids: tuple[int, ...],
    tp: int,
    *,
    channels: int,
    state_size: int,
    conv_width: int,
    conv: Dtype,
    temporal: Dtype,
) -> StateLayers:
    """States without heads (Mamba-1): a convolution and ``state_size`` numbers per channel."""
    rows = _split(fields, "state channels", channels, tp)
    return StateLayers(
        layer_ids=layer_ids,
        conv_shapes=((rows, conv_width - 1),),
        conv_dtype=conv,
        temporal_shape=(rows, 1, state_size),
        temporal_dtype=temporal,
    )


def convolutions(
    fields: Fields,
    layer_ids: tuple[int, ...],
    tp: int,
    *,
    channels: int,
    conv_width: int,
    conv: Dtype,
    temporal: Dtype,
) -> StateLayers:
    """Layers whose convolution is all they keep (LFM2)."""
    return StateLayers(
        layer_ids=layer_ids,
        conv_shapes=((_split(fields, "convolution channels", channels, tp), conv_width - 1),),
        conv_dtype=conv,
        temporal_shape=None,
        temporal_dtype=temporal,
    )


def _split(fields: Fields, what: str, number: int, tp: int) -> int:
    if number % tp:
        raise ConfigError(
            f"{fields.architecture}: {number} {what} do not split over --tp {tp}: use a divisor"
        )
    return number // tp
