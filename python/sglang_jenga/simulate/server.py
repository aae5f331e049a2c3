# SPDX-License-Identifier: Apache-2.0
"""An engine over the classes that a jenga server runs, none of which is replaced.

* ``ArenaReqToTokenPool``, ``ArenaKVPool`` / ``ArenaHybridKVPool`` and the allocator of the model's
  kinds over an ``ArenaPlan``. The buffer lies on torch's "meta" device: slot ids live on the host,
  so no byte needs to exist.
* ``ArenaRadixCache`` on ``ArenaTreeCore``, built through the factory that the server's registry
  calls, and SGLang's own ``Req``: match is ``Req.init_next_round_input``, publishing a chunk is
  ``checkpoint_kv_cache``, end and retraction are ``release_kv_cache``.
* a step asks ``check_decode_capacity``, then ``decode_step`` (what the server's decode hook calls).
  Prefill goes through one ``ArenaPrefillBudget`` per step, as SGLang's PrefillAdder drives it:
  ``fit_chunk`` for a request under way, ``check_prefill`` and ``reserve`` for newcomers, and then
  one allocation for all of them.

Admission reserves no output tokens: the whole prompt must fit, and no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req, ScheduleBatch
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_jenga.sglang_ext.decode import decode_step
from sglang_jenga.simulate.contents import Tokens, as_array
from sglang_jenga.simulate.engine import Hits, KindBytes, Request
from sglang_jenga.simulate.plain import occupancy_of
from sglang_jenga.simulate.server_parts import ServerParts

#: Token ids of images, one for each request: above those of any text.
_FIRST_IMAGE = 1 << 60


class Text(Protocol):
    """What requests say, as token ids (:class:`~sglang_jenga.simulate.contents.Contents`)."""

    def prompt(self, index: int) -> Tokens: ...

    def answer(self, index: int, at: int) -> int: ...

    def forget(self, index: int) -> None: ...


class HostTimes:
    """Host seconds spent in the server's classes, by what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def be_quiet() -> None:
    """One thread and no log lines, in the whole process: what a replay wants of SGLang."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


class ServerEngine:
    """One jenga server's memory. ``times``: who is told how long its classes took."""

    def __init__(self, parts: ServerParts, text: Text, *, times: Any = None) -> None:
        self.plan, self.arena, self.tree = parts.plan, parts.arena, parts.tree
        self.req_pool, self.demand = parts.req_pool, parts.demand
        self.text = text
        self.times: Any = HostTimes() if times is None else times
        self._newcomers: list[Request] = []
        self._unpublished: set[int] = set()
        self._pass: Any = None

    def kinds(self) -> tuple[str, ...]:
        return tuple(kind.spec.name for kind in self.plan.kinds)

    def longest_request_tokens(self) -> int:
        return self.demand.longest_request_tokens

    # ---- decode ----------------------------------------------------------------------------

    def begin_step(self) -> None:
        self._newcomers.clear()
        self._unpublished.clear()
        self._pass = None

    def decode(self, requests: Sequence[Request]) -> bool:
        """One more token for each of ``requests``, all or nothing."""
        start = time.perf_counter()
        reqs = [request.handle for request in requests]
        fits = self.arena.check_decode_capacity(
            num_tokens=len(reqs), tree_cache=self.tree, requests=reqs
        )
        if fits:
            rows = np.array([req.kv.req_pool_idx for req in reqs], dtype=np.int64)
            lens = np.array([req.kv.kv_committed_len for req in reqs], dtype=np.int64)
            if self.arena.cross_kind is not None:  # SGLang's decode batches count text alone
                lens -= self.arena.image_tokens[rows]
            decode_step(self.arena, self.tree, reqs, rows, lens)
            for req in reqs:
                req.decode_batch_idx += 1
        name = "decode_batch" if len(reqs) > 1 else "decode_single"
        self.times.add(name, time.perf_counter() - start)
        return bool(fits)

    # ---- prefill ---------------------------------------------------------------------------

    def _budget(self) -> Any:
        """The budget of this step's prefill pass."""
        if self._pass is None:
            self._pass = self.arena.create_prefill_budget(self.tree)
        return self._pass

    def next_chunk(self, request: Request, limit_tokens: int) -> int:
        tokens = self.fit_chunk(request, limit_tokens)
        if tokens:
            self.extend_chunk(request, tokens)
        return tokens

    def fit_chunk(self, request: Request, limit_tokens: int) -> int:
        """How long the next chunk of a prompt under way may be; nothing is allocated yet."""
        start = time.perf_counter()
        limit = self._budget().fit_chunk(
            extend_input_len=request.length - request.computed_tokens,
            max_new_tokens=0,
            chunk_limit=limit_tokens,
        )
        self.times.add("fit_chunk", time.perf_counter() - start)
        return min(limit_tokens, limit or 0)

    def extend_chunk(self, request: Request, tokens: int) -> None:
        """Slots for the next ``tokens`` of a prompt under way."""
        request.handle.extend_end = request.handle.prefix_len + tokens
        self._allocate([request])

    def match(self, request: Request) -> int:
        req = request.handle
        if req is None:
            req = request.handle = self._new_req(request)
        start = time.perf_counter()
        req.init_next_round_input(self.tree)
        self.times.add("match", time.perf_counter() - start)
        return max(0, int(req.prefix_len) - request.image_tokens)

    def _new_req(self, request: Request) -> Req:
        index = request.index
        req = Req(
            rid=str(index),
            origin_input_text="",
            origin_input_ids=as_array(self.text.prompt(index)),
            sampling_params=SamplingParams(max_new_tokens=request.output_tokens),
            vocab_size=1 << 31,
        )
        if request.image_tokens:  # its image comes first, every token of it alike
            image = np.full(request.image_tokens, _FIRST_IMAGE + index, dtype=np.int64)
            req.origin_input_ids = as_array(image) + req.origin_input_ids
            req.multimodal_inputs = SimpleNamespace(
                num_image_tokens=request.image_tokens, mrope_positions=None
            )
        return req

    def check(self, request: Request, limit_tokens: int, hit_tokens: int) -> int:
        """Ask admission, with the matched prefix pinned; that pin stays if it may start."""
        start = time.perf_counter()
        req = request.handle
        lock = self.tree.lock(req.last_node)
        images = self.arena.candidate_images  # lengths of requests count text alone
        extend = images + request.length - hit_tokens
        may_start, limit = self._budget().check_prefill(
            extend_input_len=extend,
            total_tokens=extend + 1,
            max_new_tokens=0,
            input_tokens=request.image_tokens + request.length,
            swa_host_hit_length=0,
            chunk_limit=images + limit_tokens,
        )
        if may_start:
            req.lock = lock
        else:
            self.tree.unlock(lock)
            req.kv.mamba_cow_src_index = None
        self.times.add("admit", time.perf_counter() - start)
        if not may_start:
            return 0
        return limit_tokens if limit is None else min(limit_tokens, limit - images)

    def admit(self, request: Request, tokens: int, hit_tokens: int) -> None:
        start = time.perf_counter()
        self._budget().reserve(self.arena.candidate_images + tokens, 0, chunk_limit=tokens)
        request.handle.extend_end = request.image_tokens + hit_tokens + tokens
        self._newcomers.append(request)
        self.times.add("admit", time.perf_counter() - start)

    def place_newcomers(self) -> None:
        if self._newcomers:
            self._allocate(self._newcomers)

    def _allocate(self, batch: Sequence[Request]) -> None:
        """Slots of a prefill batch, from ``prefix_len`` to ``extend_end`` of each request.

        A chunk under way is a batch of its own, and all newcomers of a step are one batch.
        """
        start = time.perf_counter()
        reqs = [request.handle for request in batch]
        prefixes = [
            None if req.kv.holds_kv or not req.prefix_len else self.tree.prefix_device_indices(req)
            for req in reqs
        ]
        if self.req_pool.alloc(reqs) is None:
            raise RuntimeError(f"no free row for {len(reqs)} requests")
        total = sum(req.extend_end - req.prefix_len for req in reqs)
        if self.arena.state_kind is not None and not self.tree.disable:
            self._prepare_states(reqs)
        if self.arena.alloc(total) is None:
            raise RuntimeError(f"allocation of {total} admitted tokens failed")
        for request, req, prefix in zip(batch, reqs, prefixes, strict=True):
            if prefix is not None:
                self.req_pool.write((req.kv.req_pool_idx, slice(0, req.prefix_len)), prefix)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end
            self._unpublished.add(request.index)
        self.times.add("alloc_prefill", time.perf_counter() - start)

    def _prepare_states(self, reqs: list[Req]) -> None:
        """What SGLang's ``prepare_for_extend`` does about states, by its own methods."""
        batch: Any = SimpleNamespace(
            tree_cache=self.tree,
            req_to_token_pool=self.req_pool,
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace()),
        )
        for req in reqs:
            ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend(batch, req)
        ScheduleBatch._collect_deferred_mamba_cow_and_clear(batch, reqs)

    # ---- after a forward -------------------------------------------------------------------

    def decoded(self, requests: Sequence[Request]) -> None:
        for request in requests:
            answered = request.generated_tokens
            request.handle.output_ids.append(self.text.answer(request.index, answered - 1))

    def prefilled(self, request: Request) -> None:
        self.decoded([request])
        if request.generated_tokens < request.output_tokens:
            self.publish(request)

    def end_chunk(self, request: Request) -> None:
        self.publish(request)

    def publish(self, request: Request) -> None:
        """What a chunk computed goes into the tree, as after every prefill batch of the server."""
        if request.index not in self._unpublished:
            return
        self._unpublished.remove(request.index)
        start = time.perf_counter()
        checkpoint_kv_cache(request.handle, self.tree)
        self.times.add("tree_insert_chunk", time.perf_counter() - start)

    def finish(self, request: Request) -> None:
        start = time.perf_counter()
        request.handle.finished_reason = FINISH_LENGTH(length=request.output_tokens)
        release_kv_cache(request.handle, self.tree, checkpoint=True)
        request.handle = None
        self.text.forget(request.index)
        self.times.add("free_and_insert", time.perf_counter() - start)

    def preempt(self, request: Request) -> None:
        start = time.perf_counter()
        release_kv_cache(request.handle, self.tree, checkpoint=False)
        request.handle.reset_for_retract()
        self.times.add("free_preempt", time.perf_counter() - start)

    # ---- reports ---------------------------------------------------------------------------

    def occupancy(self) -> tuple[KindBytes, ...]:
        return occupancy_of(self.arena, self.tree)

    def waits(self) -> Mapping[str, int]:
        return self.arena.starvation.waits

    def delayed_requests(self) -> Mapping[str, int]:
        return self.arena.starvation.delayed_requests

    def hits(self) -> Hits:
        log = self.tree.hits
        return Hits(
            hit_tokens=log.hit_tokens,
            full_only_tokens=log.full_only_tokens,
            cut_tokens=dict(log.cut_tokens),
        )

    def problems(self) -> list[str]:
        """Evicts all that is cached: nothing may be left."""
        found = [
            f"{one.held:,} bytes of kind {name} are held though nobody runs"
            for name, one in zip(self.kinds(), self.occupancy(), strict=True)
            if one.held
        ]
        found += self.arena.core.audit()
        self.tree.evict_until(lambda: False)
        found += self.arena.core.audit()
        missing = self.plan.usable_large_pages - self.arena.core.num_free_large_pages
        return found + ([f"{missing} large pages are not free again"] if missing else [])
