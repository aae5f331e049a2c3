# SPDX-License-Identifier: Apache-2.0
"""Random weights of a vision encoder, under which what it says depends on the whole image."""

import math

import torch

POSITION_STD = 0.3
PATCH_GAIN = 3.0
"""Pixels of one patch are alike; what is left of them after centring must outweigh positions."""


def draw_vision_parameter(
    name: str, noise: torch.Tensor, *, score_std: float, norm_jitter: float
) -> torch.Tensor:
    """A value for the encoder's parameter ``name``; ``noise`` is standard normal, of its shape.

    ``score_std``, ``norm_jitter``: as for the text model (:mod:`sglang_jenga.tiny.weights`).
    """
    owner, _, leaf = name.rpartition(".")
    module = owner.rpartition(".")[2]
    if leaf in ("gate", "gate_attn", "gate_ffn"):  # opens a branch that starts closed
        return torch.ones_like(noise)
    if leaf == "class_embedding":
        return noise
    if "embedding" in module and module != "patch_embedding":
        return POSITION_STD * noise
    if leaf == "bias":
        return norm_jitter * noise
    if "norm" in module:
        return 1.0 + norm_jitter * noise
    inputs = noise[0].numel()
    gains = {
        "q_proj": math.sqrt(score_std),
        "k_proj": math.sqrt(score_std),
        "patch_embedding": PATCH_GAIN,
    }
    return gains.get(module, 1.0) * noise * inputs**-0.5
