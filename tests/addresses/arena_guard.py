# SPDX-License-Identifier: Apache-2.0
"""Watches what torch operations do with the bytes of an arena."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Reads and writes of the slots that an index names, not of a view as a whole; and new memory of a
#: view's type.
_BY_INDEX = {
    torch.ops.aten.new_empty.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten.index_select.default,
    torch.ops.aten.index_select.out,
    torch.ops.aten.index_fill_.int_Scalar,
}


class ArenaCopied(AssertionError):
    """An operation read a whole view of the arena into memory of its own."""


class ArenaGuard(TorchDispatchMode):
    """Knows an arena's memory. Subclasses say what an operation on it may do."""

    def __init__(self, memory: torch.Tensor) -> None:
        super().__init__()
        self._storage = memory.untyped_storage().data_ptr()

    def is_arena(self, value: object) -> bool:
        """Whether it is a tensor over the arena's bytes."""
        return (
            isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == self._storage
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if self.is_arena(leaf)]
        if tensors and not _is_view(func):
            self.check(func, tensors)
        return func(*args, **kwargs)

    def check(self, func: Any, tensors: list[torch.Tensor]) -> None:
        """``func`` reads or writes bytes of ``tensors``, which lie in the arena."""
        raise NotImplementedError


class NoCopies(ArenaGuard):
    """Raises :class:`ArenaCopied` before a view of more than ``slots`` slots is copied."""

    def __init__(self, memory: torch.Tensor, *, slots: int) -> None:
        super().__init__(memory)
        self._slots = slots

    def check(self, func: Any, tensors: list[torch.Tensor]) -> None:
        wide = [tensor for tensor in tensors if len(tensor) > self._slots]
        if wide and func not in _BY_INDEX:
            size = wide[0].numel() * wide[0].element_size()
            raise ArenaCopied(f"{func} on a view of {tuple(wide[0].shape)}, {size:,} B")


def _is_view(func: Any) -> bool:
    """Whether the operation only makes another tensor over the same bytes."""
    schema = func._schema
    writes = any(a.alias_info and a.alias_info.is_write for a in schema.arguments)
    return not writes and any(r.alias_info for r in schema.returns)
