# SPDX-License-Identifier: Apache-2.0
"""Jamba: seven Mamba-1 layers for one attention layer, experts in every other MLP.

The state of a Mamba layer must matter and must last: a state that a cache lost, or took from
another request, has to change the answer. The numbers below see to that.
"""

import math
from collections.abc import Mapping

import torch

JAMBA: Mapping[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "tie_word_embeddings": False,
}

MEMORY_TOKENS = (4.0, 400.0)
"""After how many tokens the slowest element of a channel's state has decayed to 1/e; channels
differ as far as this."""
STATE_GAIN = 2.0
"""Of the norms on B and C: what a channel reads from its state outweighs what passes it by."""
SKIP_STD = 0.3
OUT_GAIN = 2.0
"""A gated output is smaller than the residual stream that it joins."""

_UNIT_GAIN = ("in_proj", "x_proj")


def draw(name: str, noise: torch.Tensor) -> torch.Tensor:
    """A new value for one parameter of a Mamba mixer, made of standard normal ``noise``.

    Raises ``ValueError`` for a parameter that no rule covers.
    """
    part = name.partition(".mamba.")[2]
    if part == "A_log":  # elements of a state decay 1, 2, 3, ... times as fast as the first
        return torch.arange(1.0, noise.shape[1] + 1).log() + 0.1 * noise
    if part == "D":
        return SKIP_STD * noise
    if part == "dt_proj.bias":
        # softplus(bias) is the decay per token: the logarithm is uniform.
        low, high = (math.log(1 / tokens) for tokens in MEMORY_TOKENS)
        uniform = 0.5 * (1 + torch.erf(noise / math.sqrt(2)))
        decay = torch.exp(low + (high - low) * uniform)
        return torch.log(torch.expm1(decay))
    if part == "dt_proj.weight":
        return 0.5 * noise * noise.shape[1] ** -0.5
    if part in ("b_layernorm.weight", "c_layernorm.weight"):
        return STATE_GAIN * (1 + 0.1 * noise)
    if part == "dt_layernorm.weight":
        return 1 + 0.1 * noise
    if part == "conv1d.weight":  # [channels, 1, width]
        return noise * noise.shape[2] ** -0.5
    if part == "conv1d.bias":
        return 0.1 * noise
    projection = part.removesuffix(".weight")
    if projection in _UNIT_GAIN:
        return noise * noise.shape[1] ** -0.5
    if projection == "out_proj":
        return OUT_GAIN * noise * noise.shape[1] ** -0.5
    raise ValueError(f"no rule initialises {name!r} of shape {tuple(noise.shape)}; add one")
