# SPDX-License-Identifier: Apache-2.0
"""Geometries of published models, as data: what each layer stores, never its weights.

Numbers are those of the public config.json (or params.json) of the named checkpoint. Layer
numbers count from 0. Layers that reuse another layer's KV store nothing and are left out.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec, attention_kind, state_kind
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayers:
    """Layers of one attention kind; K and V have the same head size in every model listed."""

    policy: Policy
    layer_ids: tuple[int, ...]
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayers:
    """Recurrent layers. conv_shape is (channels, kernel - 1), in the model's 2-byte dtype."""

    layer_ids: tuple[int, ...]
    conv_shape: tuple[int, int]
    temporal_shape: tuple[int, ...]
    temporal_itemsize: int = 4  # SGLang keeps recurrent states in float32 by default


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One published model. source says where its numbers come from."""

    name: str
    source: str
    layers: tuple[AttentionLayers | StateLayers, ...]

    def kinds(self, *, kv_itemsize: int = 2) -> tuple[KindSpec, ...]:
        """The model's kinds, named after their policy; kv_itemsize is 2 for bf16, 1 for fp8.

        States do not follow kv_itemsize: a quantised KV cache leaves them as they are.
        """
        kinds = []
        for group in self.layers:
            if isinstance(group, StateLayers):
                kinds.append(
                    state_kind(
                        "state",
                        group.layer_ids,
                        conv_shapes=[group.conv_shape],
                        conv_itemsize=2,
                        temporal_shape=group.temporal_shape,
                        temporal_itemsize=group.temporal_itemsize,
                    )
                )
            else:
                kinds.append(
                    attention_kind(
                        group.policy.NAME,
                        group.policy,
                        group.layer_ids,
                        num_kv_heads=group.num_kv_heads,
                        k_head_dim=group.head_dim,
                        v_head_dim=group.head_dim,
                        itemsize=kv_itemsize,
                    )
                )
        return tuple(kinds)


def _attention(
    policy: Policy, layer_ids: Iterable[int], kv_heads: int, head_dim: int
) -> AttentionLayers:
    return AttentionLayers(
        policy=policy, layer_ids=tuple(layer_ids), num_kv_heads=kv_heads, head_dim=head_dim
    )


def _rest(total: int, taken: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(range(total)) - set(taken)))


_NEMOTRON = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"  # hybrid_override_pattern
_QWEN = "Qwen/Qwen3-Next-80B-A3B-Instruct: full_attention_interval 4, 16 key and 32 value heads"


def _qwen3_next(name: str, temporal_itemsize: int, state_dtype: str) -> CatalogModel:
    return CatalogModel(
        name=name,
        source=f"{_QWEN} of 128, linear_conv_kernel_dim 4; state in {state_dtype}",
        layers=(
            _attention(Full(), range(3, 48, 4), 2, 256),
            StateLayers(
                layer_ids=_rest(48, range(3, 48, 4)),
                conv_shape=(2 * 16 * 128 + 32 * 128, 3),
                temporal_shape=(32, 128, 128),
                temporal_itemsize=temporal_itemsize,
            ),
        ),
    )


_MODELS = (
    CatalogModel(
        name="llama31-8b",
        source="meta-llama/Llama-3.1-8B: 32 layers, 8 KV heads of 128",
        layers=(_attention(Full(), range(32), 8, 128),),
    ),
    CatalogModel(
        name="gemma2-9b",
        source="google/gemma-2-9b: 42 layers, even ones slide over 4096, 8 KV heads of 256",
        layers=(
            _attention(Full(), range(1, 42, 2), 8, 256),
            _attention(Window(window_tokens=4096), range(0, 42, 2), 8, 256),
        ),
    ),
    CatalogModel(
        name="gemma3-27b",
        source="google/gemma-3-27b-it: 62 layers, every 6th full, window 1024, 16 KV heads of 128",
        layers=(
            _attention(Full(), range(5, 62, 6), 16, 128),
            _attention(Window(window_tokens=1024), _rest(62, range(5, 62, 6)), 16, 128),
        ),
    ),
    CatalogModel(
        # attention_k_eq_v shares the projection of full layers; K is rotated after it and V is
        # not, so both are stored.
        name="gemma4-31b",
        source="google/gemma-4-31B-it: 60 layers, every 6th full with 4 KV heads of 512 "
        "(num_global_key_value_heads, global_head_dim), others window 1024 with 16 of 256",
        layers=(
            _attention(Full(), range(5, 60, 6), 4, 512),
            _attention(Window(window_tokens=1024), _rest(60, range(5, 60, 6)), 16, 256),
        ),
    ),
    CatalogModel(
        name="gemma4-e4b",
        source="google/gemma-4-E4B-it: 42 layers of which the last 18 reuse earlier KV "
        "(num_kv_shared_layers), every 6th full, 2 KV heads of 512 (full) or 256 (window 512)",
        layers=(
            _attention(Full(), range(5, 24, 6), 2, 512),
            _attention(Window(window_tokens=512), _rest(24, range(5, 24, 6)), 2, 256),
        ),
    ),
    CatalogModel(
        name="gpt-oss-20b",
        source="openai/gpt-oss-20b: 24 layers, even ones slide over 128, 8 KV heads of 64",
        layers=(
            _attention(Full(), range(1, 24, 2), 8, 64),
            _attention(Window(window_tokens=128), range(0, 24, 2), 8, 64),
        ),
    ),
    CatalogModel(
        name="ministral-8b",
        source="mistralai/Ministral-8B-Instruct-2410: 36 layers, 1 full then 3 with window 32768 "
        "(the model card's interleaving; its config.json states one window for all), 8 KV heads "
        "of 128",
        layers=(
            _attention(Full(), range(0, 36, 4), 8, 128),
            _attention(Window(window_tokens=32768), _rest(36, range(0, 36, 4)), 8, 128),
        ),
    ),
    CatalogModel(
        name="llama4-scout",
        source="meta-llama/Llama-4-Scout-17B-16E: 48 layers, every 4th full, others in chunks of "
        "8192, 8 KV heads of 128",
        layers=(
            _attention(Full(), range(3, 48, 4), 8, 128),
            _attention(Chunked(chunk_tokens=8192), _rest(48, range(3, 48, 4)), 8, 128),
        ),
    ),
    CatalogModel(
        name="llama32-11b-vision",
        source="meta-llama/Llama-3.2-11B-Vision: 40 layers, cross_attention_layers 3, 8, .., 38, "
        "8 KV heads of 128",
        layers=(
            _attention(Full(), _rest(40, range(3, 40, 5)), 8, 128),
            _attention(Cross(), range(3, 40, 5), 8, 128),
        ),
    ),
    CatalogModel(
        # Mamba-1: d_inner = 2 * 4096. The state is taken in bf16, the checkpoint's dtype.
        name="jamba-v0.1",
        source="ai21labs/Jamba-v0.1: 32 layers, attention at 4, 12, 20, 28 with 8 KV heads of "
        "128, mamba_expand 2, mamba_d_state 16, mamba_d_conv 4",
        layers=(
            _attention(Full(), range(4, 32, 8), 8, 128),
            StateLayers(
                layer_ids=_rest(32, range(4, 32, 8)),
                conv_shape=(8192, 3),
                temporal_shape=(8192, 16),
                temporal_itemsize=2,
            ),
        ),
    ),
    _qwen3_next("qwen3-next-80b", 2, "bf16"),
    _qwen3_next("qwen3-next-80b-fp32ssm", 4, "fp32"),
    CatalogModel(
        # Attention and Mamba-2 side by side in every layer; conv channels 3072 + 2 * 1 * 256.
        name="falcon-h1-7b",
        source="tiiuae/Falcon-H1-7B-Instruct: 44 layers, 2 KV heads of 128, mamba_d_ssm 3072, "
        "24 heads of 128, mamba_d_state 256, 1 group, mamba_d_conv 4",
        layers=(
            _attention(Full(), range(44), 2, 128),
            StateLayers(
                layer_ids=tuple(range(44)),
                conv_shape=(3072 + 2 * 256, 3),
                temporal_shape=(24, 128, 256),
            ),
        ),
    ),
    CatalogModel(
        # Positions 5, 15, 25, 35 are from memory of layer_types; 4 attention layers of 40 is
        # confirmed, and the bytes do not depend on the positions.
        name="granite-4.0-h-small",
        source="ibm-granite/granite-4.0-h-small: 40 layers, 4 with attention, 8 KV heads of 128, "
        "mamba 128 heads of 64, mamba_d_state 128, 1 group, mamba_d_conv 4",
        layers=(
            _attention(Full(), range(5, 40, 10), 8, 128),
            StateLayers(
                layer_ids=_rest(40, range(5, 40, 10)),
                conv_shape=(128 * 64 + 2 * 128, 3),
                temporal_shape=(128, 64, 128),
            ),
        ),
    ),
    CatalogModel(
        # '*' is attention, 'M' is Mamba-2, '-' a feed-forward layer that stores nothing.
        name="nemotron-h-8b",
        source=f"nvidia/Nemotron-H-8B-Base-8K: 52 layers {_NEMOTRON}, 8 KV heads of 128, mamba "
        "128 heads of 64, ssm_state_size 128, 8 groups, conv_kernel 4",
        layers=(
            _attention(Full(), (found.start() for found in re.finditer(r"\*", _NEMOTRON)), 8, 128),
            StateLayers(
                layer_ids=tuple(found.start() for found in re.finditer("M", _NEMOTRON)),
                conv_shape=(128 * 64 + 2 * 8 * 128, 3),
                temporal_shape=(128, 64, 128),
            ),
        ),
    ),
)

CATALOG: Mapping[str, CatalogModel] = {model.name: model for model in _MODELS}


def model_kinds(name: str, *, kv_itemsize: int = 2) -> tuple[KindSpec, ...]:
    """Kinds of a catalogue model. ConfigError names the closest entries of an unknown one."""
    if name not in CATALOG:
        close = difflib.get_close_matches(name, CATALOG, n=3) or sorted(CATALOG)
        raise ConfigError(
            f"no model {name!r} among the {len(CATALOG)} of the catalogue: try {', '.join(close)}"
        )
    return CATALOG[name].kinds(kv_itemsize=kv_itemsize)
