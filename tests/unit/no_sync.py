# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the GPU on which waiting for the device is an error.

Tensors on torch's ``meta`` device have no data, so reading one back (``item``, ``tolist``, ``cpu``,
``bool``, ``nonzero``, ``unique``, boolean masks) raises by itself. What would only wait is caught
here: a copy between host and device that is not asynchronous, and an operation that mixes host and
device tensors, which copies behind the caller's back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"
#: What torch says when a meta tensor is read back, by the class of the error it raises.
READ_BACK = (RuntimeError, NotImplementedError)


class DeviceWaits(RuntimeError):
    """An operation that would make the host wait for the device."""


class _Guard(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sides = {t.device.type for t in tensors if t.numel() or t.device.type == DEVICE}
        if func is torch.ops.aten._to_copy.default and "device" in kwargs:
            sides.add(torch.device(kwargs["device"]).type)
        if len(sides) > 1:
            copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if not copies or not asynchronous:
                shapes = [(t.device.type, tuple(t.shape)) for t in tensors]
                raise DeviceWaits(f"{func} on {shapes} waits for the device")
            self.copies += 1
        return func(*args, **kwargs)


@contextmanager
def no_device_sync() -> Iterator[_Guard]:
    """Raise inside the block as soon as the host would wait for the device."""
    with _Guard() as guard:
        yield guard
