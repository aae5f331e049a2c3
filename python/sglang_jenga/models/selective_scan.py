# SPDX-License-Identifier: Apache-2.0
"""The two recurrences of a Mamba-1 layer in plain torch: a short convolution and a selective scan.

Both go through the tokens one state after the other, in float32. That is slow beside a fused kernel
and has one virtue: where a prompt is cut into chunks changes nothing but rounding, since each step
is the same whatever the grid. The same code runs on a CPU and on CUDA (one small kernel for each
token there).

As computed by transformers' ``modeling_jamba``; nothing here knows of slots or of SGLang.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

BLOCK_TOKENS = 64
"""Tokens whose decay and input are held at once: [BLOCK_TOKENS, channels, state] floats."""


def convolve(
    taps: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Depthwise convolution and SiLU, [n, channels] float32.

    ``taps`` holds the inputs under each element of the kernel, oldest first: ``width`` tensors
    [n, channels]. ``weight`` is [channels, width], ``bias`` [channels] or None.
    """
    total = torch.zeros_like(taps[0], dtype=torch.float32)
    if bias is not None:
        total += bias.float()
    for tap, factor in zip(taps, weight.float().unbind(1), strict=True):
        total = torch.addcmul(total, tap.float(), factor)
    return functional.silu(total)


def convolve_sequence(
    padded: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """:func:`convolve` along one sequence, [tokens, channels] float32.

    ``padded`` is [width - 1 + tokens, channels]: the inputs before the sequence, then its own. The
    convolution state after ``t`` tokens is ``padded[t : t + width - 1]``.
    """
    width = weight.shape[1]
    tokens = padded.shape[0] - (width - 1)
    return convolve([padded[i : i + tokens] for i in range(width)], weight, bias)


def scan_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each of ``n`` sequences: outputs [n, channels] and new states.

    ``state`` is [n, channels, state_size]; ``x`` and ``dt`` (after softplus) are [n, channels];
    ``A`` is [channels, state_size], negative; ``B`` and ``C`` are [n, state_size]. All float32.
    """
    decay, inflow = _discretise(x, dt, A, B)
    state = torch.addcmul(inflow, decay, state)
    return (state @ C[:, :, None])[:, :, 0], state


def scan_sequence(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens of one sequence: outputs [tokens, channels] and the state after the last.

    As :func:`scan_step`, with ``state`` [channels, state_size] and tokens instead of sequences in
    the first dimension of the others.
    """
    outputs = torch.empty_like(x)
    for start in range(0, x.shape[0], BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        decay, inflow = _discretise(x[block], dt[block], A, B[block])
        states = torch.empty_like(inflow)
        for now, d, i in zip(states.unbind(), decay.unbind(), inflow.unbind(), strict=True):
            state = torch.addcmul(i, d, state, out=now)
        outputs[block] = (states @ C[block][:, :, None])[:, :, 0]
    return outputs, state.clone()


def _discretise(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of the state and what is added to it, both [n, channels, state_size]."""
    decay = torch.exp(dt[:, :, None] * A)
    inflow = (dt * x)[:, :, None] * B[:, None, :]
    return decay, inflow
