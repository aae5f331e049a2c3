# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of hybrid models: a few attention layers among layers with a recurrent state.

A state layer keeps a fixed number of bytes per request instead of some per token. Chunks are short
(32 tokens instead of 256), so that a prompt of a test crosses several.
"""

from collections.abc import Mapping

from sglang_jenga.tiny.spec import COMMON, SMALL_SQUARE, TEST, TinySpec

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


STATE_SPECS: tuple[TinySpec, ...] = (_granite_hybrid(),)
STATE_FAMILIES: Mapping[str, TinySpec] = {spec.family: spec for spec in STATE_SPECS}
