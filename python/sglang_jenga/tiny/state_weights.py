# SPDX-License-Identifier: Apache-2.0
"""Random weights of state layers: memory of every length, and an output that depends on it.

A state forgets by ``exp(-A * dt)`` per token. ``DECAY_RATE`` and ``STEP_SIZE`` spread what the
heads of a layer remember from a few tokens to a few hundred, so a wrong state near or far behind
shows. The path around the state (``D``) is weak: by default it would carry most of the output.
"""

import math

import torch

DECAY_RATE = (1.0, 4.0)
STEP_SIZE = (0.003, 0.1)
SKIP_SCALE = 0.2


def draw_state_parameter(
    name: str, noise: torch.Tensor, rng: torch.Generator
) -> torch.Tensor | None:
    """A value for a parameter that only state layers have, None for any other.

    ``noise``: standard normal, in the shape of the parameter.
    """
    leaf = name.rpartition(".")[2]
    if leaf == "A_log":
        return _log_uniform(noise, rng, *DECAY_RATE).log()
    if leaf == "dt_bias":  # read through softplus
        return _log_uniform(noise, rng, *STEP_SIZE).expm1().log()
    if leaf == "D":
        return SKIP_SCALE * noise
    if leaf == "weight" and noise.dim() == 3 and noise.shape[1] == 1:  # depthwise, [channels, 1, w]
        return noise * noise.shape[2] ** -0.5
    return None


def _log_uniform(
    noise: torch.Tensor, rng: torch.Generator, low: float, high: float
) -> torch.Tensor:
    share = torch.rand(noise.shape, generator=rng)
    return torch.exp(math.log(low) + share * math.log(high / low))
