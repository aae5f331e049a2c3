# SPDX-License-Identifier: Apache-2.0
"""Program: the kernels of recurrent layers in the interpreter, at the far end of a sparse arena."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sglang.kernels.ops.attention.fla import fused_recurrent

from child import serving, tell
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import state_kind
from sglang_jenga.core.plan import ArenaPlan
from sparse import SparseArena
from state_kernels import (
    BATCH,
    CONV_DTYPE,
    CONV_SHAPE,
    REFUSED,
    SERVED,
    SSM_DTYPE,
    SSM_SHAPE,
    Kernel,
    States,
    copy_snapshots,
    draw,
    inputs,
)

#: Elements that lie below every slot of the batch, of each of its tensors.
BEYOND = (2**31, 2**32, 2**36)
#: So many that a slot is megabytes, and an arena has not too many of them.
LAYERS = 24


def layers_of(beyond: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """conv and ssm as ``[layers, slots, ...]`` views, and ids of slots beyond the offset."""
    plan = arena_plan(beyond)
    arena, kind = SparseArena(plan), plan.kind("state")
    conv = arena.layers_view(kind, "conv0", CONV_DTYPE, CONV_SHAPE)
    ssm = arena.layers_view(kind, "temporal", SSM_DTYPE, SSM_SHAPE)
    last = conv.shape[1] - 1
    return conv, ssm, torch.tensor([last, last - 2], dtype=torch.int32)


def arena_plan(beyond: int) -> ArenaPlan:
    """Room for a few states above ``beyond`` elements of the widest dtype."""
    kind = state_kind(
        "state",
        range(LAYERS),
        conv_shapes=[CONV_SHAPE],
        conv_itemsize=CONV_DTYPE.itemsize,
        temporal_shape=SSM_SHAPE,
        temporal_itemsize=SSM_DTYPE.itemsize,
    )
    slots = beyond * SSM_DTYPE.itemsize // kind.payload_bytes + 8
    return plan_arena([kind], arena_bytes=slots * kind.payload_bytes)


def fill(conv: torch.Tensor, ssm: torch.Tensor, ids: torch.Tensor) -> States:
    """Numbers in the slots of one layer; the same, in float64, as states of their own."""
    generator = torch.Generator().manual_seed(1)
    conv[ids] = draw(generator, BATCH, *CONV_SHAPE, dtype=CONV_DTYPE)
    ssm[ids] = draw(generator, BATCH, *SSM_SHAPE)
    return States(conv=conv[ids].double(), ssm=ssm[ids].double())


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().nan_to_num(nan=float("inf")).max())


def try_served(
    name: str, pair: tuple[Kernel, Kernel], conv: torch.Tensor, ssm: torch.Tensor, ids: torch.Tensor
) -> dict[str, float | str]:
    """One layer's call against float64: outputs, and the states that it left."""
    kernel, reference = pair
    near = fill(conv, ssm, ids)
    expected = reference(near, torch.arange(BATCH), inputs())
    out = kernel(States(conv=conv, ssm=ssm), ids, inputs())
    return {
        "kernel": name,
        "error": difference(out, expected),
        "state_error": max(difference(conv[ids], near.conv), difference(ssm[ids], near.ssm)),
    }


def try_refused(kernel: Kernel, conv: torch.Tensor, ssm: torch.Tensor, ids: torch.Tensor) -> float:
    """How far a call on far slots is from the same call on slots 0 and 1."""
    fill(conv, ssm, ids)
    near = States(conv=conv[ids].clone(), ssm=ssm[ids].clone())
    expected = kernel(near, torch.arange(BATCH, dtype=ids.dtype), inputs()).double()
    return difference(kernel(States(conv=conv, ssm=ssm), ids, inputs()), expected)


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    return tl.exp(x)


def main() -> None:
    # SGLang's module has an alias of tl.exp; the interpreter knows it by its own name only.
    fused_recurrent.exp = exp
    for beyond in BEYOND:
        convs, ssms, ids = layers_of(beyond)
        conv, ssm = convs[-1], ssms[-1]
        first = int(ids.min())
        where = {
            "beyond": beyond,
            "conv_element": first * conv.stride(0),
            "ssm_element": first * ssm.stride(0),
        }
        for name, pair in SERVED.items():
            tell(**where, **try_served(name, pair, conv, ssm, ids))
        for name, kernel in REFUSED.items():
            for dtype in (torch.int32, torch.int64):
                error = try_refused(kernel, conv, ssm, ids.to(dtype))
                tell(**where, kernel=name, index_dtype=str(dtype), error=error)
        for layer in range(LAYERS):
            fill(convs[layer], ssms[layer], ids)
        copy_snapshots(convs, ssms, ids[:1], ids[1:].long())
        tell(
            **where,
            kernel="snapshot copies",
            copied=all(
                torch.equal(states[:, ids[0]], states[:, ids[1]]) for states in (convs, ssms)
            ),
            something=float(ssms[:, ids[0]].abs().min(dim=0).values.max()) > 0,
        )


if __name__ == "__main__":
    serving(main)
