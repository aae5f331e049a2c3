# SPDX-License-Identifier: Apache-2.0
"""The convolution and the scan of a Mamba-1 layer equal a float64 loop, wherever they are cut."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from sglang_jenga.models.selective_scan import (
    BLOCK_TOKENS,
    convolve,
    convolve_sequence,
    scan_sequence,
    scan_step,
)

CHANNELS, STATE, WIDTH = 24, 5, 4
#: Of exp and of a product: elements at the end of a tensor may be computed by other instructions.
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}
LENGTHS = (1, 2, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 2 * BLOCK_TOKENS + 3)


def inputs(tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """What one sequence brings, and a state that it starts from."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    return {
        "state": normal(CHANNELS, STATE),
        "x": normal(tokens, CHANNELS),
        "dt": functional.softplus(normal(tokens, CHANNELS) - 1),
        "A": -torch.exp(normal(CHANNELS, STATE)),
        "B": normal(tokens, STATE),
        "C": normal(tokens, STATE),
    }


def loop(**tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence element by element, in float64."""
    state, x, dt, A, B, C = (tensors[name].double() for name in ("state", "x", "dt", "A", "B", "C"))
    outputs = []
    for t in range(x.shape[0]):
        new = torch.empty_like(state)
        for c in range(CHANNELS):
            for n in range(STATE):
                decay = torch.exp(dt[t, c] * A[c, n])
                new[c, n] = decay * state[c, n] + dt[t, c] * B[t, n] * x[t, c]
        state = new
        outputs.append(state @ C[t])
    return torch.stack(outputs), state


def tokens_of(given: dict[str, torch.Tensor], part: slice) -> dict[str, torch.Tensor]:
    return {n: v if n in ("state", "A") else v[part] for n, v in given.items()}


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_scan_equals_the_loop(tokens: int) -> None:
    given = inputs(tokens)
    outputs, state = scan_sequence(**given)
    expected_outputs, expected_state = loop(**given)
    torch.testing.assert_close(outputs.double(), expected_outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 30, BLOCK_TOKENS, BLOCK_TOKENS + 1, 150])
def test_a_scan_does_not_depend_on_where_it_is_cut(cut: int) -> None:
    given = inputs(151)
    whole, end = scan_sequence(**given)
    first, middle = scan_sequence(**tokens_of(given, slice(0, cut)))
    second, last = scan_sequence(**tokens_of(given, slice(cut, None)) | {"state": middle})
    torch.testing.assert_close(torch.cat([first, second]), whole, **ROUNDING)
    torch.testing.assert_close(last, end, **ROUNDING)


def test_steps_of_several_sequences_are_their_scans() -> None:
    sequences = [inputs(6, seed=i) | {"A": inputs(1)["A"]} for i in range(3)]
    states = torch.stack([s["state"] for s in sequences])
    outputs = []
    for t in range(6):
        now: dict[str, Any] = {n: torch.stack([s[n][t] for s in sequences]) for n in ("x", "dt")}
        now |= {n: torch.stack([s[n][t] for s in sequences]) for n in ("B", "C")}
        out, states = scan_step(states, A=sequences[0]["A"], **now)
        outputs.append(out)
    for i, sequence in enumerate(sequences):
        expected, end = scan_sequence(**sequence)
        torch.testing.assert_close(torch.stack(outputs)[:, i], expected, **ROUNDING)
        torch.testing.assert_close(states[i], end, **ROUNDING)


def test_a_scan_leaves_the_state_it_was_given() -> None:
    given = inputs(5)
    before = given["state"].clone()
    scan_sequence(**given)
    assert torch.equal(given["state"], before)


def test_no_tokens_give_no_outputs_and_the_same_state() -> None:
    given = inputs(0)
    outputs, state = scan_sequence(**given)
    assert outputs.shape == (0, CHANNELS)
    assert torch.equal(state, given["state"])


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution_equals_torchs_in_float64(with_bias: bool) -> None:
    padded, weight = torch.randn(WIDTH - 1 + 40, CHANNELS), torch.randn(CHANNELS, WIDTH)
    bias = torch.randn(CHANNELS) if with_bias else None
    expected = functional.conv1d(
        padded.double().T[None],
        weight.double()[:, None],
        None if bias is None else bias.double(),
        groups=CHANNELS,
    )
    torch.testing.assert_close(
        convolve_sequence(padded, weight, bias).double(),
        functional.silu(expected)[0].T,
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_convolution_does_not_depend_on_where_it_is_cut() -> None:
    padded, weight = torch.randn(WIDTH - 1 + 40, CHANNELS), torch.randn(CHANNELS, WIDTH)
    whole = convolve_sequence(padded, weight, None)
    for cut in (1, 2, 3, 20, 39):
        first = convolve_sequence(padded[: WIDTH - 1 + cut], weight, None)
        state = padded[cut : cut + WIDTH - 1]  # what a slot holds after ``cut`` tokens
        second = convolve_sequence(torch.cat([state, padded[WIDTH - 1 + cut :]]), weight, None)
        torch.testing.assert_close(torch.cat([first, second]), whole, **ROUNDING)


def test_one_token_of_each_sequence_is_convolved_as_in_its_sequence() -> None:
    windows, weight = torch.randn(3, WIDTH, CHANNELS), torch.randn(CHANNELS, WIDTH)
    bias = torch.randn(CHANNELS)
    out = convolve(windows.unbind(1), weight, bias)
    for i in range(3):
        torch.testing.assert_close(out[i : i + 1], convolve_sequence(windows[i], weight, bias))
