# SPDX-License-Identifier: Apache-2.0
"""What each tiny checkpoint looks like: one transformers configuration per family and preset.

Every family keeps the layer pattern of the model it is named after, because the pattern is what the
memory system sees. Only sizes shrink: a window of 32 to 64 tokens, so that a prompt of a few
hundred tokens is many windows long. Windows differ between families, and 40 and 48 are no powers
of two, so that code which confuses one constant with another fails somewhere.
"""

from collections.abc import Mapping

from sglang_jenga.tiny.spec import (
    BENCH,
    BENCH_SIZE,
    COMMON,
    DEMO,
    GEMMA3_ROPE,
    LLAMA3_ROPE,
    SMALL,
    SMALL_SQUARE,
    TEST,
    WINDOW,
    TinySpec,
    layer_types,
)
from sglang_jenga.tiny.state_specs import STATE_FAMILIES, STATE_SPECS
from sglang_jenga.tiny.tokenizer import VOCAB_SIZE
from sglang_jenga.tiny.vision_specs import IMAGE_FAMILIES, IMAGE_SPECS

__all__ = [
    "ATTENTION_FAMILIES",
    "BENCH",
    "DEMO",
    "FAMILIES",
    "IMAGE_FAMILIES",
    "SPECS",
    "STATE_FAMILIES",
    "TEST",
    "TinySpec",
    "find_spec",
]


def _llama(preset: str, size: Mapping[str, object], layers: int) -> TinySpec:
    """Llama 3.1: full attention everywhere. The control: nothing to gain, so nothing may be
    lost."""
    config = {
        **COMMON,
        **SMALL,
        **size,
        "num_hidden_layers": layers,
        "rope_parameters": LLAMA3_ROPE,
    }
    return TinySpec(family="llama", preset=preset, model_type="llama", config=config)


def _gemma2() -> TinySpec:
    """Gemma 2: windows in every other layer, attention scores soft-capped. The cap is 4, not 50, so
    that a backend which ignores it gives other outputs."""
    config = {
        **COMMON,
        **SMALL,
        "num_hidden_layers": 6,
        "layer_types": layer_types(layers=6, local=WINDOW, period=2),
        "sliding_window": 48,
        "query_pre_attn_scalar": 64,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",  # SGLang reads the old name of hidden_activation
    }
    return TinySpec(
        family="gemma2", preset=TEST, model_type="gemma2", config=config, embedding_std=128**-0.5
    )


def _gemma3(preset: str, size: Mapping[str, object], layers: int, window: int) -> TinySpec:
    """Gemma 3: five window layers for one full layer, with its own RoPE base each."""
    config = {
        **COMMON,
        **SMALL,
        **size,
        "num_hidden_layers": layers,
        "layer_types": layer_types(layers=layers, local=WINDOW, period=6),
        "sliding_window": window,
        "query_pre_attn_scalar": 64,
        "rope_parameters": GEMMA3_ROPE,
    }
    return TinySpec(
        family="gemma3",
        preset=preset,
        model_type="gemma3_text",
        config=config,
        embedding_std=128**-0.5,
    )


def _gemma4() -> TinySpec:
    """Gemma 4: full layers have other heads than window layers (1 x 128, the K projection reused as
    V, against 2 x 64), the last four layers reuse the K/V of an earlier layer, and every layer has
    its own token embedding. No published size has all of it: the small ones share, the large ones
    differ in heads.

    Published checkpoints are multimodal; this one is the text model alone, which SGLang serves as
    ``Gemma4ForCausalLM`` but whose configuration it does not adapt. So the configuration is written
    in the form SGLang adapts others to: base attributes describe full layers, ``swa_*`` describe
    window layers, and transformers reads the same facts from ``per_layer_config``.
    """
    layers = 8
    types = layer_types(layers=layers, local=WINDOW, period=4)
    window_heads = {"head_dim": 64, "num_key_value_heads": 2}
    config = {
        **COMMON,
        **SMALL,
        "head_dim": 128,
        "num_key_value_heads": 1,
        "swa_head_dim": window_heads["head_dim"],
        "swa_v_head_dim": window_heads["head_dim"],
        "swa_num_key_value_heads": window_heads["num_key_value_heads"],
        "per_layer_config": {str(i): window_heads for i, t in enumerate(types) if t == WINDOW},
        "allow_global_per_layer_attribute_access": True,
        "num_hidden_layers": layers,
        "layer_types": types,
        "sliding_window": 40,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 4,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "final_logit_softcapping": 30.0,
    }
    return TinySpec(
        family="gemma4",
        preset=TEST,
        model_type="gemma4_text",
        config=config,
        embedding_std=128**-0.5,
    )


def _gpt_oss(
    preset: str, size: Mapping[str, object], layers: int, window: int, positions: int
) -> TinySpec:
    """gpt-oss: windows in every other layer, a learned sink per head, a mixture of experts."""
    config = {
        **COMMON,
        **SMALL,
        "intermediate_size": 128,
        **size,
        "num_hidden_layers": layers,
        "layer_types": layer_types(layers=layers, local=WINDOW, period=2),
        "sliding_window": window,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": positions,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150_000.0,
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": positions // 8,
        },
    }
    return TinySpec(family="gpt_oss", preset=preset, model_type="gpt_oss", config=config)


def _llama4() -> TinySpec:
    """Llama 4 (Maverick's text model): three chunk-local layers with RoPE for one full layer
    without, a mixture of experts in every other layer. ``floor_scale`` is small, so that the
    temperature of the full layers changes within a test prompt."""
    config = {
        **COMMON,
        **SMALL,
        "intermediate_size": 128,
        "intermediate_size_mlp": 256,
        "num_hidden_layers": 8,
        "attention_chunk_size": 64,
        "no_rope_layer_interval": 4,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "use_qk_norm": False,
        "attn_temperature_tuning": True,
        "floor_scale": 128,
        "attn_scale": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    }
    return TinySpec(
        family="llama4",
        preset=TEST,
        model_type="llama4_text",
        config=config,
        architecture="Llama4ForConditionalGeneration",
    )


def _ministral() -> TinySpec:
    """Ministral-8B-2410: one full layer, then three window layers."""
    config = {
        **COMMON,
        **SMALL,
        "num_hidden_layers": 8,
        "layer_types": layer_types(layers=8, local=WINDOW, period=4, full_first=True),
        "sliding_window": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000_000.0},
    }
    return TinySpec(family="ministral", preset=TEST, model_type="ministral", config=config)


def _cohere2() -> TinySpec:
    """Command R7B: three window layers with RoPE for one full layer without; attention and MLP side
    by side."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 8,
        "layer_types": layer_types(layers=8, local=WINDOW, period=4),
        "sliding_window": 40,
        "logit_scale": 0.25,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
    }
    return TinySpec(family="cohere2", preset=TEST, model_type="cohere2", config=config)


def _olmo3() -> TinySpec:
    """OLMo 3: three window layers for one full layer; Q and K normalised over all heads
    together."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 8,
        "layer_types": layer_types(layers=8, local=WINDOW, period=4),
        "sliding_window": 32,
    }
    return TinySpec(
        family="olmo3", preset=TEST, model_type="olmo3", config=config, legacy_rope=True
    )


def _exaone4() -> TinySpec:
    """EXAONE 4 (32B): three window layers with RoPE for one full layer without."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 8,
        "layer_types": layer_types(layers=8, local=WINDOW, period=4),
        "sliding_window": 48,
        "sliding_window_pattern": "LLLG",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }
    return TinySpec(family="exaone4", preset=TEST, model_type="exaone4", config=config)


_ALL = (
    _llama(TEST, {}, layers=6),
    _llama(BENCH, BENCH_SIZE, layers=6),
    _gemma2(),
    _gemma3(TEST, {}, layers=6, window=32),
    # 12 window layers against 2 full ones, with twice the KV heads: where a static split hurts.
    _gemma3(DEMO, {"num_key_value_heads": 4}, layers=14, window=64),
    _gemma3(BENCH, BENCH_SIZE, layers=12, window=512),
    _gemma4(),
    _gpt_oss(TEST, {}, layers=6, window=32, positions=4096),
    _gpt_oss(BENCH, BENCH_SIZE, layers=8, window=128, positions=16384),
    _llama4(),
    _ministral(),
    _cohere2(),
    _olmo3(),
    _exaone4(),
    *STATE_SPECS,
    *IMAGE_SPECS,
)
SPECS: Mapping[tuple[str, str], TinySpec] = {(s.family, s.preset): s for s in _ALL}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(s.family for s in _ALL))
ATTENTION_FAMILIES: tuple[str, ...] = tuple(
    f for f in FAMILIES if f not in (*STATE_FAMILIES, *IMAGE_FAMILIES)
)
"""Families of text alone, without a recurrent state."""


def find_spec(family: str, preset: str = TEST) -> TinySpec:
    """The spec of one checkpoint; ``ValueError`` names what exists."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(FAMILIES)}")
    if (family, preset) not in SPECS:
        known = ", ".join(p for f, p in SPECS if f == family)
        raise ValueError(f"{family} has no preset {preset!r}: choose one of {known}")
    return SPECS[family, preset]
