# SPDX-License-Identifier: Apache-2.0
"""Layers of models that keep recurrent states beside attention, from their configurations."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_jenga.core.configs.attention_families import attention
from sglang_jenga.core.configs.dtypes import (
    BFLOAT16,
    Dtype,
    conv_dtype,
    state_dtype,
    stated_dtype,
)
from sglang_jenga.core.configs.fields import MOST_LAYERS, Fields
from sglang_jenga.core.configs.states import channel_states, convolutions, head_states
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.model_kinds import ModelKinds, StateLayers, group_layers
from sglang_jenga.core.policies import Full, Policy

_GRANITE = {
    "mamba": "state",
    "linear_attention": "state",
    "attention": "full",
    "full_attention": "full",
}
_NEMOTRON_PATTERN = {"M": "state", "*": "full", "-": "none", "E": "none"}
_NEMOTRON_TYPES = {
    "mamba": "state",
    "linear_attention": "state",
    "attention": "full",
    "full_attention": "full",
    "mlp": "none",
    "moe": "none",
}
_QWEN = {"linear_attention": "state", "full_attention": "full"}
_LFM2 = {"conv": "state", "short_conv": "state", "full_attention": "full"}


def _ids(kinds: Sequence[str], wanted: str) -> tuple[int, ...]:
    return tuple(i for i, kind in enumerate(kinds) if kind == wanted)


def _full(kinds: Sequence[str]) -> list[Policy | None]:
    return [Full() if kind == "full" else None for kind in kinds]


def _dtypes(fields: Fields) -> tuple[Dtype, Dtype]:
    """Of convolutions (SGLang's default, whatever the model's) and of states."""
    return conv_dtype(fields), state_dtype(fields)


def _require_both(fields: Fields, kinds: Sequence[str], name: str) -> None:
    """Refuse a model that has states alone, which the arena cannot serve, or none where its file
    builds some; ``name`` is the field that says which layers are which."""
    for kind, what, why in (
        ("full", "no attention layer", "requests are addressed by the slots of one"),
        ("state", "no layer with a state", "SGLang's file of it expects one"),
    ):
        if kind not in kinds:
            raise ConfigError(
                f"{fields.architecture}: {name!r} leaves {what} among {len(kinds)}, and {why}: "
                "check the field, or serve the model with SGLang's own pools"
            )


def _grouped(
    fields: Fields, tp: int, kinds: Sequence[str], states: StateLayers | None, head_dim: int
) -> ModelKinds:
    layers = attention(_full(kinds), num_kv_heads=fields.kv_heads(tp), head_dim=head_dim)
    return group_layers(layers, states)


def granite_hybrid(fields: Fields, tp: int) -> ModelKinds:
    """Granite 4, whose small ones have attention alone. SGLang reads no ``mamba_ssm_dtype`` of this
    one: float32 unless a flag says otherwise (granitemoehybrid.py)."""
    kinds = fields.kinds_of_layers("layer_types", fields.layers(), _GRANITE)
    if "state" not in kinds:
        return _grouped(fields, tp, kinds, None, fields.head_dim(stated=False))
    _require_both(fields, kinds, "layer_types")
    states = head_states(
        fields,
        _ids(kinds, "state"),
        tp,
        names=("mamba_n_heads", "mamba_d_head", "mamba_n_groups"),
        channels=fields.integer("mamba_expand") * fields.integer("hidden_size"),
        groups=fields.integer("mamba_n_groups"),
        heads=fields.integer("mamba_n_heads"),
        head_dim=fields.integer("mamba_d_head"),
        state_size=fields.integer("mamba_d_state"),
        conv_width=fields.integer("mamba_d_conv", least=2),
        conv=conv_dtype(fields),
        temporal=state_dtype(fields, field_counts=False),
    )
    return _grouped(fields, tp, kinds, states, fields.head_dim(stated=False))


def falcon_h1(fields: Fields, tp: int) -> ModelKinds:
    """Falcon-H1: attention and a state in every layer."""
    layers = fields.layers()
    channels = (
        fields.integer("mamba_d_ssm")
        if fields.optional("mamba_d_ssm") is not None
        else fields.integer("mamba_expand") * fields.integer("hidden_size")
    )
    heads = fields.integer("mamba_n_heads")
    head_dim = channels // heads
    if fields.optional("mamba_d_head") != "auto":
        head_dim = fields.integer("mamba_d_head")
    conv, temporal = _dtypes(fields)
    states = head_states(
        fields,
        tuple(range(layers)),
        tp,
        names=("mamba_n_heads", "mamba_d_head", "mamba_n_groups"),
        channels=channels,
        groups=fields.integer("mamba_n_groups"),
        heads=heads,
        head_dim=head_dim,
        state_size=fields.integer("mamba_d_state"),
        conv_width=fields.integer("mamba_d_conv", least=2),
        conv=conv,
        temporal=temporal,
    )
    return _grouped(fields, tp, ["full"] * layers, states, fields.head_dim())


def nemotron_h(fields: Fields, tp: int) -> ModelKinds:
    """Nemotron-H: one letter per layer, M a state, * attention, - an MLP, E experts."""
    pattern = fields.optional("hybrid_override_pattern")
    if isinstance(pattern, str):
        name, known = "hybrid_override_pattern", _NEMOTRON_PATTERN
        layers = len(pattern)
    else:
        name, known = "layers_block_type", _NEMOTRON_TYPES
        types = fields.optional(name)
        layers = len(types) if isinstance(types, list) else 0
    if layers > MOST_LAYERS:
        raise ConfigError(
            f"{fields.architecture}: {name!r} has {layers:,} entries, at most {MOST_LAYERS:,} are "
            "read: check that this is the model's own config.json"
        )
    kinds = fields.kinds_of_layers(name, layers, known)
    _require_both(fields, kinds, name)
    heads, head_dim = fields.integer("mamba_num_heads"), fields.integer("mamba_head_dim")
    conv, temporal = _dtypes(fields)
    states = head_states(
        fields,
        _ids(kinds, "state"),
        tp,
        names=("mamba_num_heads", "mamba_head_dim", "n_groups"),
        channels=heads * head_dim,
        groups=fields.integer("n_groups"),
        heads=heads,
        head_dim=head_dim,
        state_size=fields.integer("ssm_state_size"),
        conv_width=fields.integer("conv_kernel", least=2),
        conv=conv,
        temporal=temporal,
    )
    if fields.optional("sliding_window") is not None:
        raise ConfigError(
            f"{fields.architecture}: 'sliding_window' is set, and no published Nemotron-H has "
            "windows: nothing was checked"
        )
    return _grouped(fields, tp, kinds, states, fields.head_dim())


def qwen3_next(fields: Fields, tp: int) -> ModelKinds:
    """Qwen3-Next: a gated delta net in all but every n-th layer. SGLang reads the interval and not
    ``layer_types`` (qwen3_next.py)."""
    layers, interval = fields.layers(), fields.integer("full_attention_interval")
    kinds = ["state" if (i + 1) % interval else "full" for i in range(layers)]
    if fields.optional("layer_types") is not None:
        stated = fields.kinds_of_layers("layer_types", layers, _QWEN)
        if stated != kinds:
            raise ConfigError(
                f"{fields.architecture}: 'layer_types' and 'full_attention_interval' {interval} "
                "disagree, and SGLang follows the interval: correct one of them"
            )
    _require_both(fields, kinds, "full_attention_interval")
    value_heads = fields.integer("linear_num_value_heads")
    value_dim = fields.integer("linear_value_head_dim")
    conv, temporal = _dtypes(fields)
    states = head_states(
        fields,
        _ids(kinds, "state"),
        tp,
        names=("linear_num_value_heads", "linear_value_head_dim", "linear_num_key_heads"),
        channels=value_heads * value_dim,
        groups=fields.integer("linear_num_key_heads"),
        heads=value_heads,
        head_dim=value_dim,
        state_size=fields.integer("linear_key_head_dim"),
        conv_width=fields.integer("linear_conv_kernel_dim", least=2),
        groups_copied=True,
        conv=conv,
        temporal=temporal,
    )
    return _grouped(fields, tp, kinds, states, fields.head_dim())


def lfm2(fields: Fields, tp: int) -> ModelKinds:
    """LFM2: short convolutions, whose last inputs are all they keep."""
    layers = fields.layers()
    name = "layer_types"
    if fields.optional(name) is None and fields.optional("full_attn_idxs") is not None:
        name = "full_attn_idxs"
        at = set(fields.numbers_of_layers(name, layers))
        kinds = ["full" if i in at else "state" for i in range(layers)]
    else:
        kinds = fields.kinds_of_layers(name, layers, _LFM2)
    _require_both(fields, kinds, name)
    hidden = fields.integer("hidden_size")
    conv, temporal = _dtypes(fields)
    states = convolutions(
        fields,
        _ids(kinds, "state"),
        tp,
        channels=hidden,
        conv_width=fields.integer("conv_L_cache", least=2),
        conv=conv,
        temporal=temporal,
    )
    return _grouped(fields, tp, kinds, states, fields.head_dim())


def jamba(fields: Fields, tp: int) -> ModelKinds:
    """Jamba: attention once in a period; convolutions in the checkpoint's dtype
    (models/jamba_config.py)."""
    period, offset = (
        fields.integer("attn_layer_period"),
        fields.integer("attn_layer_offset", least=0),
    )
    kinds = ["full" if i % period == offset else "state" for i in range(fields.layers())]
    _require_both(fields, kinds, "attn_layer_period")
    states = channel_states(
        fields,
        _ids(kinds, "state"),
        tp,
        channels=fields.integer("mamba_expand") * fields.integer("hidden_size"),
        state_size=fields.integer("mamba_d_state"),
        conv_width=fields.integer("mamba_d_conv", least=2),
        conv=conv_dtype(fields, stated_dtype(fields) or BFLOAT16),
        temporal=state_dtype(fields),
    )
    return _grouped(fields, tp, kinds, states, fields.head_dim())
