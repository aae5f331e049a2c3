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
    names: tuple[str, str, str],
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
    group is copied to every rank; ``groups_copied``: so are several that do not split. ``names``:
    the fields of heads, head_dim and groups, for what is said of them.

    Raises:
        ConfigError: the heads are not as many channels, groups do not share the heads evenly, or
            one of them does not split over the ranks.

    conv    [(channels + 2 * groups * state_size) / tp, conv_width - 1]
    state   [heads / tp, head_dim, state_size]
    """
    of_heads, of_dim, of_groups = names
    if channels != heads * head_dim:
        raise ConfigError(
            f"{fields.architecture}: {of_heads} {heads} * {of_dim} {head_dim} is "
            f"{heads * head_dim}, and its other fields give {channels} channels to the states: "
            "correct one of them"
        )
    if heads % groups:
        raise ConfigError(
            f"{fields.architecture}: {of_groups} {groups} does not divide {of_heads} {heads}, and "
            "each group serves as many heads: correct one of them"
        )
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
        conv_shapes=((fields.split("convolution channels", mixed, tp), conv_width - 1),),
        conv_dtype=conv,
        temporal_shape=(fields.split("state heads", heads, tp), head_dim, state_size),
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
    rows = fields.split("state channels", channels, tp)
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
        conv_shapes=((fields.split("convolution channels", channels, tp), conv_width - 1),),
        conv_dtype=conv,
        temporal_shape=None,
        temporal_dtype=temporal,
    )
