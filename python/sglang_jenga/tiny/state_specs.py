# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of hybrid models: a few attention layers among layers with a recurrent state.

A state layer keeps a fixed number of bytes per request instead of some per token. Chunks are short
(32 tokens instead of 256), so that a prompt of a test crosses several.
"""

from sglang_jenga.tiny.jamba_spec import JAMBA
from sglang_jenga.tiny.spec import COMMON, FULL, SMALL, SMALL_SQUARE, TEST, TinySpec, layer_types

CHUNK_TOKENS = 32


def _granite_hybrid() -> TinySpec:
    """Granite 4 (H): Mamba2 in three layers of four (published: nine of ten) and attention without
    RoPE, a mixture of experts and a shared MLP in every layer. The four multipliers of the family
    differ from 1, so that code which forgets one gives other outputs."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "intermediate_size": 128,
        "shared_intermediate_size": 128,
        "num_hidden_layers": 8,
        "layer_types": ["mamba", "mamba", "attention", "mamba"] * 2,
        "position_embedding_type": "nope",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_state": 16,
        "mamba_chunk_size": CHUNK_TOKENS,
        "tie_word_embeddings": True,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.0625,
        "logits_scaling": 4.0,
    }
    return TinySpec(
        family="granite_hybrid",
        preset=TEST,
        model_type="granitemoehybrid",
        config=config,
        embedding_std=1 / 12.0,
    )


def _falcon_h1() -> TinySpec:
    """Falcon-H1: attention and Mamba2 side by side in every layer. No norm behind the state, so
    ``ssm_out_multiplier`` makes its output as large as attention's; the other multipliers differ
    from 1 where the published ones do."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 5,
        "mamba_d_ssm": 384,
        "mamba_n_heads": 6,
        "mamba_d_head": 64,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": CHUNK_TOKENS,
        "embedding_multiplier": 5.0,
        "lm_head_multiplier": 0.05,
        "key_multiplier": 0.5,
        "attention_out_multiplier": 0.9,
        "mlp_multipliers": [0.9, 0.8],
        "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 4.0,
        "ssm_multipliers": [0.7, 1.0, 0.9, 1.1, 0.8],
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000_000_000.0},
    }
    return TinySpec(
        family="falcon_h1",
        preset=TEST,
        model_type="falcon_h1",
        config=config,
        embedding_std=1 / 5.0,
    )


def _nemotron_h() -> TinySpec:
    """Nemotron-H: a layer is one of Mamba2, MLP (squared ReLU, no gate) and attention without RoPE;
    an attention layer stands where an MLP would. Two groups, each normalised on its own."""
    pattern, groups = "M-M*-M-M*-M-", 2
    config = {
        **COMMON,
        **SMALL,
        "hybrid_override_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "mamba_num_heads": 4,
        "mamba_head_dim": 64,
        "ssm_state_size": 16,
        "n_groups": groups,
        "chunk_size": CHUNK_TOKENS,
        # transformers keeps step sizes above this, and in prefill only; SGLang does not.
        "time_step_min": 1e-6,
    }
    return TinySpec(
        family="nemotron_h",
        preset=TEST,
        model_type="nemotron_h",
        config=config,
        # SGLang's Mamba2 layer takes its groups from one name, its state pool from the other.
        rewritten={
            "layers_block_type": None,
            "hybrid_override_pattern": pattern,
            "mamba_n_groups": groups,
        },
    )


def _qwen3_next() -> TinySpec:
    """Qwen3-Next: a gated delta net in three layers of four, two value heads for a key head, and
    gated attention; a mixture of experts and a gated shared expert in every layer."""
    interval = 4
    config = {
        **COMMON,
        **SMALL,
        "num_hidden_layers": 8,
        "layer_types": layer_types(layers=8, local="linear_attention", period=interval),
        "full_attention_interval": interval,  # SGLang reads this, and not layer_types
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }
    return TinySpec(family="qwen3_next", preset=TEST, model_type="qwen3_next", config=config)


def _lfm2() -> TinySpec:
    """LFM2: a gated convolution of width 3 where most layers have attention, so a state is the last
    two tokens; attention in the third layer of three and in the last."""
    config = {
        **COMMON,
        **SMALL_SQUARE,
        "intermediate_size": 384,
        "block_multiple_of": 32,
        "num_hidden_layers": 8,
        "layer_types": ["conv", "conv", FULL, "conv", "conv", FULL, "conv", FULL],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }
    return TinySpec(family="lfm2", preset=TEST, model_type="lfm2", config=config)


STATE_SPECS: tuple[TinySpec, ...] = (
    _granite_hybrid(),
    _falcon_h1(),
    _nemotron_h(),
    _qwen3_next(),
    _lfm2(),
    TinySpec(family="jamba", preset=TEST, model_type="jamba", config={**COMMON, **JAMBA}),
)
STATE_FAMILIES: tuple[str, ...] = tuple(spec.family for spec in STATE_SPECS)
"""Families that have layers with a recurrent state."""
