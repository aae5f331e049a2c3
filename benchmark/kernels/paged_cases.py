# SPDX-License-Identifier: Apache-2.0
"""What the attention kernels are asked: K/V in a real arena, handed out by the real allocator.

A :class:`Case` describes a model's two kinds and a batch. :class:`Workload` allocates the batch
from an arena the way a server does (chunk by chunk, windows sliding), fills the slots in use with
numbers and everything else with NaN bit patterns, so that a kernel which reads what is not its own
says so. A :class:`Problem` is one attention call of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.allocator import ArenaAllocator, IntArray
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Full, Policy, Window
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds
from sglang_jenga.sglang_ext.pools import ArenaHybridKVPool

FULL, WINDOW = 0, 1
KIND_NAMES = ("full", "window")
_CHUNK_TOKENS = 64
NAN_BYTE = 0xFF  # two of them are a NaN in bfloat16 and float16, four in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Heads of one kind. window_tokens: tokens before the current one that it sees, None: all."""

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """prefix_tokens are in the cache already, new_tokens are computed by this call."""

    prefix_tokens: int
    new_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.prefix_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two kinds in one arena, and a batch.

    logit_cap: 0.0 means none.
    below_bytes: bytes of the arena below every slot of the batch, to reach large offsets.
    """

    name: str
    full: Shape
    window: Shape
    requests: tuple[Request, ...]
    page_tokens: int = 1
    logit_cap: float = 0.0
    has_sinks: bool = False
    below_bytes: int = 0

    def shape(self, kind: int) -> Shape:
        return (self.full, self.window)[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One attention call of one layer.

    q: ``[new tokens, q heads, dim]``, request after request.
    k, v: ``[slots, kv heads, dim]``, indexed by slot id; any stride over slots.
    slots: per request, int64 slot ids of its last positions, oldest first; at least those that its
        new tokens attend to, and the new tokens themselves.
    num_new: per request, how many of the last positions are queries.
    window_tokens: tokens before the current one that a query sees, None: all.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    slots: tuple[IntArray, ...]
    num_new: tuple[int, ...]
    scale: float
    page_tokens: int
    window_tokens: int | None
    logit_cap: float
    sinks: torch.Tensor | None

    @property
    def is_decode(self) -> bool:
        return set(self.num_new) == {1}

    def on_contiguous_pools(self) -> Problem:
        """The same call with the same slot ids on pools as SGLang allocates them."""
        return replace(self, k=self.k.contiguous(), v=self.v.contiguous())


class Workload:
    """A case laid out in an arena on ``device``.

    slots[kind][request]: int64 slot ids of the request's live positions, oldest first. The window
    kind keeps what the new tokens see; older positions were freed and their bytes given away.
    """

    def __init__(self, case: Case, *, device: str, dtype: torch.dtype, seed: int = 0) -> None:
        self.case = case
        self.dtype = dtype
        self.kinds = _model_kinds(case)
        self.plan = _plan(case, self.kinds, dtype)
        self.buffer = self._make_buffer(device)
        self.pool = ArenaHybridKVPool(self.buffer, self.kinds, dtype)
        self._generator = torch.Generator(device).manual_seed(seed)
        self.slots = _allocate(case, self.plan)
        self._poison()
        for kind, layers in enumerate((self.kinds.full, self.kinds.window)):
            ids = torch.from_numpy(np.concatenate(self.slots[kind])).to(device)
            for layer in layers:
                for view in self.pool.get_kv_buffer(layer.layer_id):
                    view[ids] = self.random(len(ids), *view.shape[1:])

    def _make_buffer(self, device: str) -> ArenaBuffer:
        return ArenaBuffer(self.plan, device)

    def _poison(self) -> None:
        """NaN everywhere but in the sink."""
        self.buffer.bytes[self.plan.large_page_bytes :].fill_(NAN_BYTE)

    def random(self, *shape: int) -> torch.Tensor:
        """Normal numbers of the case's dtype."""
        device = self.buffer.bytes.device
        return torch.randn(shape, generator=self._generator, device=device).to(self.dtype)

    def layer(self, kind: int) -> int:
        """A layer of the kind: the last one, whose rows start furthest inside the slot."""
        return (self.kinds.full, self.kinds.window)[kind][-1].layer_id

    def problem(self, kind: int) -> Problem:
        """One attention call of :meth:`layer`."""
        case, shape = self.case, self.case.shape(kind)
        k, v = self.pool.get_kv_buffer(self.layer(kind))
        num_new = tuple(request.new_tokens for request in case.requests)
        return Problem(
            q=self.random(sum(num_new), shape.num_q_heads, shape.head_dim),
            k=k,
            v=v,
            slots=self.slots[kind],
            num_new=num_new,
            scale=shape.head_dim**-0.5,
            page_tokens=case.page_tokens,
            window_tokens=shape.window_tokens,
            logit_cap=case.logit_cap,
            sinks=self.random(shape.num_q_heads).float() if case.has_sinks else None,
        )


def first_live(request: Request, shape: Shape, page_tokens: int) -> int:
    """First position whose slot the kind still holds, a whole number of pages."""
    if shape.window_tokens is None:
        return 0
    return max(0, request.prefix_tokens - shape.window_tokens) // page_tokens * page_tokens


def arena_bytes_needed(case: Case, dtype: torch.dtype) -> int:
    """Bytes of K/V that the batch keeps, both kinds."""
    total = 0
    for shape in (case.full, case.window):
        row_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize
        for request in case.requests:
            live = request.num_tokens - first_live(request, shape, case.page_tokens)
            total += -(-live // case.page_tokens) * case.page_tokens * row_bytes
    return total


def _model_kinds(case: Case) -> ModelKinds:
    def layers(first_id: int, shape: Shape, policy: Policy) -> tuple[AttentionLayer, ...]:
        return tuple(
            AttentionLayer(
                layer_id=first_id + i,
                num_kv_heads=shape.num_kv_heads,
                k_head_dim=shape.head_dim,
                v_head_dim=shape.head_dim,
                policy=policy,
            )
            for i in range(shape.num_layers)
        )

    return ModelKinds(
        full=layers(0, case.full, Full()),
        window=layers(
            case.full.num_layers, case.window, Window(window_tokens=case.window.window_tokens)
        ),
    )


def _plan(case: Case, kinds: ModelKinds, dtype: torch.dtype) -> ArenaPlan:
    """An arena with room for the batch and for what its prefill holds on the way."""
    specs = kinds.specs(dtype)
    large_page_bytes = plan_arena(
        specs, arena_bytes=2**40, page_tokens=case.page_tokens
    ).large_page_bytes
    on_the_way = (_CHUNK_TOKENS + 2 * case.page_tokens) * sum(s.payload_bytes for s in specs)
    # Per request and kind: a large page begun by the batch, and one that is let go of.
    large_pages = 4 + 4 * len(case.requests)
    return plan_arena(
        specs,
        arena_bytes=case.below_bytes
        + arena_bytes_needed(case, dtype)
        + len(case.requests) * on_the_way
        + large_pages * large_page_bytes,
        page_tokens=case.page_tokens,
    )


def _allocate(case: Case, plan: ArenaPlan) -> tuple[tuple[IntArray, ...], ...]:
    """Slots per kind and request, after a prefill in chunks by the real allocator.

    The window kind gives slots back as it slides, so its large pages change kind on the way.
    """
    page = case.page_tokens
    rows = len(case.requests)
    core = ArenaAllocator(plan, num_rows=rows + 1)
    if case.below_bytes:  # a fresh arena hands out its lowest pages first: park a request there
        small_page_bytes = plan.kinds[FULL].small_page_bytes
        core.extend([rows], [[-(-case.below_bytes // small_page_bytes)], [0]])
    pages = [[np.empty(0, dtype=np.int64) for _ in range(rows)] for _ in KIND_NAMES]
    longest = max(request.num_tokens for request in case.requests)
    chunk_pages = -(-_CHUNK_TOKENS // page)
    for done in range(0, -(-longest // page), chunk_pages):
        for row, request in enumerate(case.requests):
            count = min(chunk_pages, -(-request.num_tokens // page) - done)
            if count <= 0:
                continue
            for kind, new in enumerate(core.extend([row], [[count], [count]])):
                pages[kind][row] = np.concatenate((pages[kind][row], new))
            end = done + count
            window = case.window.window_tokens or request.num_tokens
            keep_from = min(first_live(request, case.window, page), max(0, end * page - window))
            gone = keep_from // page - (end - len(pages[WINDOW][row]))
            if gone > 0:
                core.free(WINDOW, pages[WINDOW][row][:gone])
                pages[WINDOW][row] = pages[WINDOW][row][gone:]
    violations = core.audit()
    if violations:
        raise AssertionError(f"the allocator broke its invariants: {violations}")
    return tuple(
        tuple(
            _slots(ids, page)[: request.num_tokens - first_live(request, case.shape(kind), page)]
            for ids, request in zip(pages[kind], case.requests, strict=True)
        )
        for kind in (FULL, WINDOW)
    )


def _slots(pages: IntArray, page_tokens: int) -> IntArray:
    return (pages[:, None] * page_tokens + np.arange(page_tokens)).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedIndices:
    """A page table as kernels take it, on the host. All int32, FlashInfer's names.

    kv_indptr ``[requests + 1]`` and kv_indices ``[kv_indptr[-1]]`` count pages of ``page_tokens``
    slots; last_page_len ``[requests]`` is 1 to page_tokens; qo_indptr ``[requests + 1]`` counts
    query tokens.
    """

    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    last_page_len: torch.Tensor
    qo_indptr: torch.Tensor


def paged_indices(
    slots: Sequence[IntArray], num_new: Sequence[int], page_tokens: int
) -> PagedIndices:
    """Page table of requests whose positions start on a page boundary.

    Raises:
        ValueError: slots of one page are not consecutive, or a page does not start on a multiple.
    """
    indices = []
    for ids in slots:
        heads = ids[::page_tokens]
        expected = _slots(heads // page_tokens, page_tokens)[: len(ids)]
        if not np.array_equal(ids, expected):
            raise ValueError(f"slots are not whole pages of {page_tokens} tokens")
        indices.append(heads // page_tokens)
    counts = [len(pages) for pages in indices]
    last = [(len(ids) - 1) % page_tokens + 1 for ids in slots]
    return PagedIndices(
        kv_indptr=_indptr(counts),
        kv_indices=torch.from_numpy(np.concatenate(indices).astype(np.int32)),
        last_page_len=torch.tensor(last, dtype=torch.int32),
        qo_indptr=_indptr(num_new),
    )


def _indptr(counts: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))


def reference(problem: Problem) -> torch.Tensor:
    """Attention in float64, one request and query at a time. ``[new tokens, q heads, dim]``."""
    out = torch.empty(problem.q.shape, dtype=torch.float64, device=problem.q.device)
    groups = problem.q.shape[1] // problem.k.shape[1]
    start = 0
    for ids, count in zip(problem.slots, problem.num_new, strict=True):
        index = torch.from_numpy(ids).to(problem.q.device)
        k = problem.k[index].double().repeat_interleave(groups, dim=1)
        v = problem.v[index].double().repeat_interleave(groups, dim=1)
        q = problem.q[start : start + count].double()
        logits = torch.einsum("qhd,khd->hqk", q, k) * problem.scale
        if problem.logit_cap:
            logits = problem.logit_cap * torch.tanh(logits / problem.logit_cap)
        # Positions count from the oldest slot given; only distances matter.
        query = torch.arange(len(ids) - count, len(ids), device=q.device)[:, None]
        key = torch.arange(len(ids), device=q.device)[None, :]
        seen = key <= query
        if problem.window_tokens is not None:
            seen &= key >= query - problem.window_tokens
        logits.masked_fill_(~seen, float("-inf"))
        if problem.sinks is not None:
            sink = problem.sinks.double()[:, None, None].expand(-1, count, 1)
            weights = torch.softmax(torch.cat((logits, sink), dim=-1), dim=-1)[..., :-1]
        else:
            weights = torch.softmax(logits, dim=-1)
        out[start : start + count] = torch.einsum("hqk,khd->qhd", weights, v)
        start += count
    return out
