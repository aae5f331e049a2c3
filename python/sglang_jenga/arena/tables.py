# SPDX-License-Identifier: Apache-2.0
"""Slot ids on the host, mirrored to the device one way.

Slot ids are born on the host and every reader on the device only follows. These tables keep the
host's copy authoritative, so that freeing, counting and matching never read a device tensor back:

    host array --(async copy)--> device tensor --> kernels

On a CPU device both names share one memory and a write is a single store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


def to_device(ids: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Asynchronous host-to-device copy of a fresh array; on CPU the array itself."""
    tensor = torch.from_numpy(ids)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class RowTable:
    """``req_to_token``: row (request) x position -> slot id of the full kind.

    In models with cross attention the first positions of a row are its images, whose slots belong
    to the cross kind. Slot ids of two kinds collide, and whoever frees or counts a slot must know
    its kind. So on the host an image's slot ``s`` is written ``image_base + s``; kernels, which
    read images and text through different layers, see plain ``s``.

    Args:
        device_table: SGLang's ``[rows, max_context]`` int32 tensor, read by kernels.
        image_base: slots of the full kind over the whole arena, None: the model has no images.
    """

    def __init__(self, device_table: torch.Tensor, image_base: int | None = None) -> None:
        self.device_table = device_table
        self.image_base = image_base
        self.shared = device_table.device.type == "cpu" and image_base is None
        host = device_table if self.shared else torch.zeros(device_table.shape, dtype=torch.int32)
        #: Host copy as a torch tensor, sliced by the radix cache. ``[rows, max_context]`` int32.
        self.req_to_token = host
        self.host: npt.NDArray[np.int32] = host.numpy()

    def write(self, index: tuple[int, slice], values: torch.Tensor) -> None:
        """``row[start:stop] = values`` (host int ids) on both sides.

        The radix cache calls it to re-point a request's row to the tree's slots.
        """
        self.req_to_token[index] = values.to(torch.int32)
        if not self.shared:
            ids = self.kernel_ids(values.to(torch.int32).numpy())
            self.device_table[index] = to_device(ids, self.device_table.device)

    def kernel_ids(self, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        """Host ids as kernels know them: slots of whichever kind, without ``image_base``."""
        base = self.image_base
        return ids if base is None else np.where(ids >= base, ids - base, ids)


class Translation:
    """Slot id of the full kind -> slot id of the window kind, for each token that has both.

    SGLang's attention backends translate reads and writes of window layers with the device table
    (``SWAKVPool.full_to_swa_index_mapping``): int64, one entry per full slot id and a trailing -1
    so that a location of -1 stays -1. Entry 0 means the window slot is gone (it reads the sink).

    Args:
        num_full_slots: slot ids of the full kind over the whole arena.
    """

    def __init__(self, num_full_slots: int, device: torch.device) -> None:
        self.host: IntArray = np.zeros(num_full_slots + 1, dtype=np.int64)
        self.host[-1] = -1
        self.device = device
        self.shared = device.type == "cpu"
        self.device_table = torch.from_numpy(self.host)
        if not self.shared:
            self.device_table = self.device_table.to(device)

    def set(self, full: IntArray, window: IntArray) -> None:
        """Pair slots; both arrays are 1-D and equally long."""
        self.host[full] = window
        if not self.shared:
            index = to_device(full, self.device)
            self.device_table.index_put_((index,), to_device(window, self.device))

    def forget(self, full: IntArray) -> None:
        """The window slots of these full slots are gone."""
        self.host[full] = 0
        if not self.shared:
            # index_fill_ passes the 0 as a kernel argument: no host scalar to wait for.
            self.device_table.index_fill_(0, to_device(full, self.device), 0)

    def clear(self) -> None:
        """Forget every pair (keeps the sentinel and the tensors kernels captured)."""
        self.host[:-1] = 0
        if not self.shared:
            self.device_table[:-1].zero_()
