# SPDX-License-Identifier: Apache-2.0
"""Replay a request stream through the classes that a jenga server runs, inside the neutral judge.

    drive_jenga.py --judge DIR --model gemma3-27b --stream mooncake_conv -n 400

DIR (or the environment variable JUDGE_DIR) holds the judge's ``common.py``: model geometries,
streams, the continuous-batching loop and the metrics, the same for every manager it scores. This
file only translates between that loop and the server's classes, none of which is replaced:

* ``ArenaReqToTokenPool``, ``ArenaKVPool`` / ``ArenaHybridKVPool`` and the allocator of the model's
  kinds over the ``ArenaPlan`` of its true geometry and budget. The buffer lies on torch's "meta"
  device: slot ids live on the host, so no byte needs to exist.
* ``ArenaRadixCache`` on ``ArenaTreeCore``, built through the factory that the server's registry
  calls, and SGLang's own ``Req``: match is ``Req.init_next_round_input``, publishing a chunk is
  ``checkpoint_kv_cache``, end and retraction are ``release_kv_cache``.
* a step asks ``check_decode_capacity``, then ``decode_step`` (what the server's decode hook calls).
  Prefill goes through one ``ArenaPrefillBudget`` per step, as SGLang's PrefillAdder drives it:
  ``fit_chunk`` for a request under way, ``check_prefill`` and ``reserve`` for newcomers, and then
  one allocation for all of them.

Admission reserves no output tokens (the judge's rule for every peer: the whole prompt must fit).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from array import array
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req, ScheduleBatch
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from server_parts import build
from sglang_jenga.sglang_ext.decode import decode_step
from sglang_jenga.sglang_ext.order import EvictionOrder


def add_judge_to_path(argv: list[str]) -> None:
    """Put the directory of the judge's ``common.py`` first on the module path."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--judge", default=os.environ.get("JUDGE_DIR", ""))
    known, _ = parser.parse_known_args(argv)
    if not (Path(known.judge or "/nonexistent") / "common.py").is_file():
        sys.exit(
            f"--judge {known.judge or '(not given)'}: no common.py there. Give the directory of "
            "the judge with --judge DIR or JUDGE_DIR=DIR."
        )
    sys.path.insert(0, str(Path(known.judge).resolve()))


add_judge_to_path(sys.argv[1:])

from common import Peer, SReq, Timers, make_parser, run_one

torch.set_num_threads(1)
logging.disable(logging.WARNING)

PEER, MODES = "jenga", ("default",)


RULES = tuple(field.name for field in fields(EvictionOrder))


def order_of(rules: str) -> EvictionOrder:
    """``balanced,aligned``: these rules of eviction and no others; ``all``; ``none``."""
    chosen = RULES if rules == "all" else [rule for rule in rules.split(",") if rule != "none"]
    unknown = set(chosen) - set(RULES)
    if unknown:
        sys.exit(f"--rules {rules}: no rule {', '.join(sorted(unknown))}, only {', '.join(RULES)}")
    return EvictionOrder(**{rule: rule in chosen for rule in RULES})


class JengaPeer(Peer):
    """The judge's view of one jenga server. Times are host seconds spent in its classes."""

    def __init__(self, model: Any, budget: int, args: Any, opts: dict[str, str]) -> None:
        self.model, self.budget, self.timers = model, budget, Timers()
        parts = build(model, budget, args)
        self.plan, self.arena, self.tree = parts.plan, parts.arena, parts.tree
        self.tree.tree_core.order = order_of(args.rules)
        self.req_pool, demand = parts.req_pool, parts.demand
        self.running: list[SReq] = []
        self.decoded: set[int] = set()
        self.newcomers: list[SReq] = []
        self.unpublished: set[int] = set()
        self.pass_budget: Any = None
        self.admitted = False
        self.samples: list[tuple[int, int, int]] = []
        self.setup_info = {
            "plan": self.plan.describe(),
            "explanation": self.plan.explanation,
            "geometry": self.plan.geometry,
            "large_page_bytes": self.plan.large_page_bytes,
            "num_large_pages": self.plan.num_large_pages,
            "slide_interval_tokens": demand.slide_interval_tokens(self.plan),
            "longest_request_tokens": demand.longest_request_tokens(self.plan),
        }

    # ---- decode ----------------------------------------------------------------------------

    def begin_step(self) -> None:
        self.decoded.clear()
        self.newcomers.clear()
        self.unpublished.clear()
        self.pass_budget = None
        due = [r for r in self.running if r.n_out > 0 and r.computed == r.seq_len - 1]
        if due:
            self._decode(due, "decode_batch")

    def _decode(self, due: list[SReq], timer: str) -> bool:
        """One more token for each of ``due``, all or nothing."""
        start = time.perf_counter()
        reqs = [r.peer for r in due]
        fits = self.arena.check_decode_capacity(
            num_tokens=len(reqs), tree_cache=self.tree, requests=reqs
        )
        if fits:
            rows = np.array([req.kv.req_pool_idx for req in reqs], dtype=np.int64)
            lens = np.array([req.kv.kv_committed_len for req in reqs], dtype=np.int64)
            if self.arena.cross_kind is not None:  # SGLang's decode batches count text alone
                lens -= self.arena.image_tokens[rows]
            decode_step(self.arena, self.tree, reqs, rows, lens)
            for r, req in zip(due, reqs, strict=True):
                req.decode_batch_idx += 1
                self.decoded.add(r.idx)
        self.timers.add(timer, time.perf_counter() - start)
        return bool(fits)

    # ---- prefill ---------------------------------------------------------------------------

    def _budget(self) -> Any:
        """The budget of this step's prefill pass."""
        if self.pass_budget is None:
            self.pass_budget = self.arena.create_prefill_budget(self.tree)
        return self.pass_budget

    def chunk_limit(self, r: SReq, n: int, hit: int | None = None) -> int:
        """Tokens of ``r`` to compute now; the server's admission may shorten a chunk."""
        if hit is not None:
            return self._check(r, n, hit)
        if r.idx in self.decoded or self._decodes(r):
            return n
        start = time.perf_counter()
        limit = self._budget().fit_chunk(
            extend_input_len=r.seq_len - r.computed, max_new_tokens=0, chunk_limit=n
        )
        self.timers.add("fit_chunk", time.perf_counter() - start)
        return min(n, limit or 0)

    def _check(self, r: SReq, n: int, hit: int) -> int:
        """Ask admission for a newcomer, with its prefix pinned; the answer is for :meth:`admit`."""
        start = time.perf_counter()
        lock = self.tree.lock(r.peer.last_node)
        images = self.arena.candidate_images  # the judge's lengths count text alone
        extend = images + r.seq_len - hit
        self.admitted, limit = self._budget().check_prefill(
            extend_input_len=extend,
            total_tokens=extend + 1,
            max_new_tokens=0,
            input_tokens=r.img + r.seq_len,
            swa_host_hit_length=0,
            chunk_limit=images + n,
        )
        if self.admitted:
            r.peer.lock = lock
        else:
            self.tree.unlock(lock)
            r.peer.kv.mamba_cow_src_index = None
        self.timers.add("admit", time.perf_counter() - start)
        return n if limit is None else min(n, limit - images)

    @staticmethod
    def _decodes(r: SReq) -> bool:
        return r.n_out > 0 and r.computed == r.seq_len - 1

    def match(self, r: SReq) -> int:
        if r.peer is None:
            r.peer = Req(
                rid=str(r.idx),
                origin_input_text="",
                origin_input_ids=array("q", (r.prompt_ids() + 1).tolist()),
                sampling_params=SamplingParams(max_new_tokens=r.out_len),
                vocab_size=1 << 31,
            )
            if r.img:  # its image comes first, every token of it alike
                pad = (1 << 40) + r.idx
                r.peer.origin_input_ids = array("q", [pad]) * r.img + r.peer.origin_input_ids
                r.peer.multimodal_inputs = SimpleNamespace(
                    num_image_tokens=r.img, mrope_positions=None
                )
        start = time.perf_counter()
        r.peer.init_next_round_input(self.tree)
        self.timers.add("match", time.perf_counter() - start)
        return max(0, int(r.peer.prefix_len) - r.img)

    def admit(self, r: SReq, n: int, hit: int) -> bool:
        if not self.admitted:
            return False
        start = time.perf_counter()
        self._budget().reserve(self.arena.candidate_images + n, 0, chunk_limit=n)
        r.peer.extend_end = r.img + hit + n
        self.newcomers.append(r)
        self.running.append(r)
        self.timers.add("admit", time.perf_counter() - start)
        return True

    def extend(self, r: SReq, n: int) -> bool:
        if r.idx in self.decoded:
            return True
        if self._decodes(r):
            return self._decode([r], "decode_single")
        r.peer.extend_end = r.peer.prefix_len + n
        self._allocate([r])
        return True

    def after_compute(self, scheduled: list[tuple[SReq, int]]) -> None:
        if self.newcomers:
            self._allocate(self.newcomers)

    def _allocate(self, batch: list[SReq]) -> None:
        """Slots of a prefill batch, from ``prefix_len`` to ``extend_end`` of each request.

        The judge mixes decodes and chunks in one step, decodes and chunks under way first. A chunk
        under way is therefore a batch of its own, and all newcomers are one batch.
        """
        start = time.perf_counter()
        reqs = [r.peer for r in batch]
        prefixes = [
            None if req.kv.holds_kv or not req.prefix_len else self.tree.prefix_device_indices(req)
            for req in reqs
        ]
        if self.req_pool.alloc(reqs) is None:
            raise RuntimeError(f"no free row for {len(reqs)} requests")
        total = sum(req.extend_end - req.prefix_len for req in reqs)
        if self.arena.state_kind is not None:
            self._prepare_states(reqs)
        if self.arena.alloc(total) is None:
            raise RuntimeError(f"allocation of {total} admitted tokens failed")
        for r, req, prefix in zip(batch, reqs, prefixes, strict=True):
            if prefix is not None:
                self.req_pool.write((req.kv.req_pool_idx, slice(0, req.prefix_len)), prefix)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end
            self.unpublished.add(r.idx)
        self.timers.add("alloc_prefill", time.perf_counter() - start)

    def _prepare_states(self, reqs: list[Req]) -> None:
        """What SGLang's ``prepare_for_extend`` does about states, by its own methods."""
        batch = SimpleNamespace(
            tree_cache=self.tree,
            req_to_token_pool=self.req_pool,
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace()),
        )
        for req in reqs:
            ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend(batch, req)
        ScheduleBatch._collect_deferred_mamba_cow_and_clear(batch, reqs)

    def token(self, r: SReq) -> None:
        r.peer.output_ids.append(r.out_id(r.n_out))
        if r.n_out < r.out_len:
            self._publish(r)

    def end_chunks(self, scheduled: list[tuple[SReq, int]]) -> None:
        for r, _ in scheduled:
            if r.peer is not None and r.computed < r.seq_len:
                self._publish(r)

    def _publish(self, r: SReq) -> None:
        """What a chunk computed goes into the tree, as after every prefill batch of the server."""
        if r.idx not in self.unpublished:
            return
        self.unpublished.remove(r.idx)
        start = time.perf_counter()
        checkpoint_kv_cache(r.peer, self.tree)
        self.timers.add("tree_insert_chunk", time.perf_counter() - start)

    # ---- ends ------------------------------------------------------------------------------

    def preempt(self, r: SReq) -> None:
        start = time.perf_counter()
        release_kv_cache(r.peer, self.tree, checkpoint=False)
        r.peer.reset_for_retract()
        self.timers.add("free_preempt", time.perf_counter() - start)
        self.running.remove(r)

    def finish(self, r: SReq) -> None:
        start = time.perf_counter()
        r.peer.finished_reason = FINISH_LENGTH(length=r.out_len)
        release_kv_cache(r.peer, self.tree, checkpoint=True)
        self.timers.add("free_and_insert", time.perf_counter() - start)
        self.running.remove(r)
        r.peer = None

    # ---- metrics ---------------------------------------------------------------------------

    def _used_and_evictable(self) -> list[tuple[int, int, int]]:
        """(used slots, evictable slots, slot bytes) per kind."""
        return [
            (self.arena.used_slots(index), self.tree.evictable_slots(index), kind.slot_bytes)
            for index, kind in enumerate(self.plan.kinds)
        ]

    def held_bytes(self) -> int:
        """Bytes of slots that running requests pin. Partial pages are sampled beside it."""
        held = sum((used - cached) * size for used, cached, size in self._used_and_evictable())
        census = self.arena.core.census()
        partial = [
            sum(
                getattr(c, state) * k.small_page_bytes
                for c, k in zip(census, self.plan.kinds, strict=True)
            )
            for state in ("reserved_small_pages", "hole_small_pages")
        ]
        self.samples.append((held, *partial))
        return held

    def cached_bytes(self) -> int:
        return sum(cached * size for _, cached, size in self._used_and_evictable())

    def final(self) -> dict[str, Any]:
        """State after the drain: what is still held, what evicting everything gives back."""
        held = self.held_bytes()
        audit = self.arena.core.audit()
        samples = np.array(self.samples, dtype=float)
        means = samples.mean(axis=0) / self.plan.arena_bytes
        out = {
            "held_bytes": held,
            "audit": audit,
            "mean_reserved_over_budget": round(float(means[1]), 5),
            "mean_holes_over_budget": round(float(means[2]), 5),
            "evicted_tokens": self.tree.evicted_tokens_by_kind(),
            "hits": {k: v for k, v in self.tree.hits.as_dict().items() if k != "reports"},
        }
        self.tree.evict_until(lambda: False)
        out["audit_after_evicting_all"] = self.arena.core.audit()
        out["large_pages_missing_after_evicting_all"] = (
            self.plan.usable_large_pages - self.arena.core.num_free_large_pages
        )
        return out


def drive(argv: list[str] | None = None) -> dict[str, Any]:
    """Run one row; the judge's record with ``final`` added, appended to ``--json`` if given."""
    parser = make_parser(PEER, MODES)
    parser.add_argument("--judge", default=os.environ.get("JUDGE_DIR", ""))
    parser.add_argument("--rules", default="all", help="rules of eviction (benchmark/retention)")
    args = parser.parse_args(argv)
    path, args.json = args.json, ""
    peers: list[JengaPeer] = []

    def make(*parts: Any) -> JengaPeer:
        peers.append(JengaPeer(*parts))
        return peers[0]

    record: dict[str, Any] = run_one(PEER, make, args)
    if "result" in record:
        record["final"] = peers[0].final()
        print(json.dumps(record["final"]), flush=True)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
    return record


if __name__ == "__main__":
    record = drive()
    final = record.get("final", {"held_bytes": 1})
    healthy = not final["held_bytes"] and not record["result"]["timed_out"]
    sys.exit(0 if healthy and not final["audit"] else 1)
