# SPDX-License-Identifier: Apache-2.0
"""One flat buffer and its views (design section 2: arena, view).

A view spans the WHOLE arena: ``view[slot]`` is right whichever large page the slot lies in,
because ``large_page_bytes`` is a multiple of ``slot_bytes``. Kernels see an ordinary
``[slots, heads, dim]`` tensor whose token stride is the slot of the kind and whose rows are
contiguous.
"""

from __future__ import annotations

import torch

from sglang_jenga.core.plan import ArenaPlan, KindPlan


class ArenaBuffer:
    """The bytes of an arena.

    Args:
        plan: the geometry; the buffer has ``plan.arena_bytes`` bytes.
        device: torch device of the buffer.

    Zeroed once: kernels that read whole pages and mask by select never see stale NaNs before the
    first write (seams 4.6), and the sink (large page 0) starts defined.
    """

    def __init__(self, plan: ArenaPlan, device: str | torch.device) -> None:
        self.plan = plan
        self.bytes = torch.zeros(plan.arena_bytes, dtype=torch.uint8, device=device)

    def view(
        self, kind: KindPlan, layer_id: int, part: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """``[num_slots, *shape]`` view of one layer's part of ``kind``, indexed by slot id.

        Args:
            dtype: storage dtype; its size divides the slot and the row's offset.
            shape: one slot's row, contiguous, ``prod(shape) * dtype.itemsize == row_bytes``.

        Raises:
            ValueError: the row of the plan has another size.
        """
        row = next(r for r in kind.spec.rows if r.layer_id == layer_id and r.part == part)
        num_elements = 1
        for dim in shape:
            num_elements *= dim
        if num_elements * dtype.itemsize != row.row_bytes:
            raise ValueError(
                f"layer {layer_id} part {part!r}: shape {shape} of {dtype} is "
                f"{num_elements * dtype.itemsize} B, the plan has {row.row_bytes} B"
            )
        strides = []
        step = 1
        for dim in reversed(shape):
            strides.append(step)
            step *= dim
        return torch.as_strided(
            self.bytes.view(dtype),
            (self.plan.num_slots(kind.spec.name), *shape),
            (kind.slot_bytes // dtype.itemsize, *reversed(strides)),
            kind.row_offset_bytes(layer_id, part) // dtype.itemsize,
        )
