# SPDX-License-Identifier: Apache-2.0
"""One flat buffer and its views (design section 2: arena, view).

A view spans the WHOLE arena: ``view[slot]`` is right whichever large page the slot lies in,
because ``large_page_bytes`` is a multiple of ``slot_bytes``. Kernels see an ordinary
``[slots, heads, dim]`` tensor whose token stride is the slot of the kind and whose rows are
contiguous.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

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
        return self._layers(kind, [layer_id], part, dtype, shape)[0]

    def layers_view(
        self, kind: KindPlan, part: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """``[layers, num_slots, *shape]`` view of one part of ``kind`` in every layer that has it.

        For kinds whose rows lie part by part, each part's layers side by side
        (:func:`sglang_jenga.core.kinds.state_kind`): SGLang's state kernels index layer, then slot.

        Raises:
            ValueError: a row has another size, or the layers are not evenly spaced.
        """
        layer_ids = [row.layer_id for row in kind.spec.rows if row.part == part]
        return self._layers(kind, layer_ids, part, dtype, shape)

    def _layers(
        self,
        kind: KindPlan,
        layer_ids: list[int],
        part: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        expected = prod(shape) * dtype.itemsize
        for row in kind.spec.rows:
            if row.part == part and row.layer_id in layer_ids and row.row_bytes != expected:
                raise ValueError(
                    f"layer {row.layer_id} part {part!r}: shape {shape} of {dtype} is "
                    f"{expected} B, the plan has {row.row_bytes} B"
                )
        starts = [kind.row_offset_bytes(layer_id, part) for layer_id in layer_ids]
        steps = {after - before for before, after in pairwise(starts)}
        if len(steps) > 1:
            raise ValueError(f"part {part!r}: its layers are not evenly spaced in a slot")
        layer_stride = steps.pop() if steps else 0
        strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
        return torch.as_strided(
            self.bytes.view(dtype),
            (len(layer_ids), self.plan.num_slots(kind.spec.name), *shape),
            (layer_stride // dtype.itemsize, kind.slot_bytes // dtype.itemsize, *strides),
            starts[0] // dtype.itemsize,
        )
