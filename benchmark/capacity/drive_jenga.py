# SPDX-License-Identifier: Apache-2.0
"""Replay a request stream through the classes that a jenga server runs, inside the neutral judge.

    drive_jenga.py --judge DIR --model gemma3-27b --stream mooncake_conv -n 400

DIR (or the environment variable JUDGE_DIR) holds the judge's ``common.py``: model geometries,
streams, the continuous-batching loop and the metrics, the same for every manager it scores. This
file only translates between that loop and the simulator's engine over the classes of a server
(:mod:`sglang_jenga.simulate.server`), which says what runs and how it is asked.

Admission reserves no output tokens (the judge's rule for every peer: the whole prompt must fit).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_jenga.core.kinds import KindSpec, attention_kind, state_kind
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, Window
from sglang_jenga.core.sizing import size_arena
from sglang_jenga.sglang_ext.order import EvictionOrder
from sglang_jenga.simulate.contents import Tokens
from sglang_jenga.simulate.model import as_served, window_of
from sglang_jenga.simulate.server import ServerEngine, be_quiet
from sglang_jenga.simulate.server_parts import build


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

import common
from common import WEIGHTS, Peer, SReq, Timers, make_parser, run_one

from streams import add_streams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "retention"))
from marconi import install

be_quiet()
add_streams(common)

PEER, MODES = "jenga", ("default",)
#: More rows than any row of the judge runs at once; a row costs 4 bytes per position of memory.
MAX_ROWS = 512

#: ``--rules marconi:ALPHA``: not one of our rules, but a published order instead of them.
MARCONI = "marconi"
RULES = tuple(field.name for field in fields(EvictionOrder))


def order_of(rules: str) -> EvictionOrder:
    """``balanced,aligned``: these rules of eviction and no others; ``all``; ``none``."""
    chosen = RULES if rules == "all" else [rule for rule in rules.split(",") if rule != "none"]
    unknown = set(chosen) - set(RULES)
    if unknown:
        sys.exit(f"--rules {rules}: no rule {', '.join(sorted(unknown))}, only {', '.join(RULES)}")
    return EvictionOrder(**{rule: rule in chosen for rule in RULES})


def flops_of(model: Any, tokens: int) -> float:
    """To compute the first ``tokens`` of a prompt, as the judge's clock counts them."""
    weights = WEIGHTS[model.name]
    seen = sum(
        group.layers * (tokens / 2 if group.kind == "full" else group.window)
        for group in model.groups
        if group.bpt
    )
    return tokens * (2 * weights.active + 4 * weights.q_width * seen)


def kinds_of(model: Any) -> tuple[KindSpec, ...]:
    """The judge's geometry as kinds."""
    kinds: list[KindSpec] = []
    layer_id = 0
    for group in model.groups:
        ids = range(layer_id, layer_id + group.layers)
        layer_id += group.layers
        if group.kind == "mamba":
            (conv, temporal), dtypes = group.shapes, group.dtypes
            sizes = [getattr(torch, dtype).itemsize for dtype in dtypes]
            kinds.append(
                state_kind(
                    "state",
                    ids,
                    conv_shapes=[conv],
                    conv_itemsize=sizes[0],
                    temporal_shape=temporal,
                    temporal_itemsize=sizes[1],
                )
            )
            continue
        shape = {"num_kv_heads": group.heads, "k_head_dim": group.head_dim}
        shape["v_head_dim"] = group.head_dim
        kinds.append(attention_kind(group.kind, _policy(group), ids, **shape, itemsize=2))
    return as_served(kinds)


def _policy(group: Any) -> Policy:
    if group.kind == "swa":
        return Window(window_tokens=group.window)
    if group.kind == "chunk":
        return Chunked(chunk_tokens=group.window)
    return {"full": Full, "cross": Cross}[group.kind]()


class JudgedRequest:
    """A request of the judge with the simulator's names (:class:`engine.Request`)."""

    def __init__(self, judged: SReq) -> None:
        self.judged = judged
        self.index, self.output_tokens = judged.idx, judged.out_len
        self.image_tokens = judged.img
        self.handle: Any = None

    length = property(lambda self: self.judged.seq_len)
    computed_tokens = property(lambda self: self.judged.computed)
    generated_tokens = property(lambda self: self.judged.n_out)


class JudgedText:
    """What the judge's requests say; those that have started are known by their index."""

    def __init__(self) -> None:
        self.requests: dict[int, SReq] = {}

    def prompt(self, index: int) -> Tokens:
        return self.requests[index].prompt_ids() + 1

    def answer(self, index: int, at: int) -> int:
        return int(self.requests[index].out_id(at + 1))

    def forget(self, index: int) -> None:
        del self.requests[index]


class JengaPeer(Peer):
    """The judge's view of one jenga server. Times are host seconds spent in its classes."""

    def __init__(self, model: Any, budget: int, args: Any, opts: dict[str, str]) -> None:
        self.model, self.budget, self.timers = model, budget, Timers()
        kinds = kinds_of(model)
        sized = size_arena(
            kinds,
            arena_bytes=budget,
            page_tokens=1,
            window=window_of(kinds),
            chunk_tokens=args.token_budget,
        )
        self.plan, demand = sized.plan, sized.demand
        parts = build(
            self.plan,
            demand,
            num_rows=min(args.max_seqs, MAX_ROWS),
            context_tokens=model.max_len + 64,
        )
        self.text = JudgedText()
        self.engine = ServerEngine(parts, self.text, times=self.timers)
        self.arena, self.tree = parts.arena, parts.tree
        name, _, alpha = args.rules.partition(":")
        if name == MARCONI:
            install(self.tree.tree_core, float(alpha), lambda tokens: flops_of(model, tokens))
        else:
            self.tree.tree_core.order = order_of(args.rules)
        self.running: list[SReq] = []
        self.decoded: set[int] = set()
        self.samples: list[tuple[int, int, int]] = []
        self.setup_info = {
            "plan": self.plan.describe(),
            "explanation": self.plan.explanation,
            "geometry": self.plan.geometry,
            "large_page_bytes": self.plan.large_page_bytes,
            "num_large_pages": self.plan.num_large_pages,
            "slide_interval_tokens": demand.slide_interval_tokens,
            "longest_request_tokens": sized.longest_request_tokens,
        }

    # ---- the judge's step ------------------------------------------------------------------

    def begin_step(self) -> None:
        self.engine.begin_step()
        self.decoded.clear()
        due = [r for r in self.running if self._decodes(r)]
        if due and self.engine.decode([r.peer for r in due]):
            self.decoded.update(r.idx for r in due)

    @staticmethod
    def _decodes(r: SReq) -> bool:
        return r.n_out > 0 and r.computed == r.seq_len - 1

    def chunk_limit(self, r: SReq, n: int, hit: int | None = None) -> int:
        """Tokens of ``r`` to compute now; the server's admission may shorten a chunk."""
        if hit is not None:
            return self.engine.check(r.peer, n, hit)
        if r.idx in self.decoded or self._decodes(r):
            return n
        return self.engine.fit_chunk(r.peer, n)

    def match(self, r: SReq) -> int:
        if r.peer is None:
            r.peer = JudgedRequest(r)
            self.text.requests[r.idx] = r
        return self.engine.match(r.peer)

    def admit(self, r: SReq, n: int, hit: int) -> bool:
        self.engine.admit(r.peer, n, hit)
        self.running.append(r)
        return True

    def extend(self, r: SReq, n: int) -> bool:
        if r.idx in self.decoded:
            return True
        if self._decodes(r):
            return self.engine.decode([r.peer])
        self.engine.extend_chunk(r.peer, n)
        return True

    def after_compute(self, scheduled: list[tuple[SReq, int]]) -> None:
        self.engine.place_newcomers()

    def token(self, r: SReq) -> None:
        self.engine.prefilled(r.peer)

    def end_chunks(self, scheduled: list[tuple[SReq, int]]) -> None:
        for r, _ in scheduled:
            if r.peer is not None and r.computed < r.seq_len:
                self.engine.end_chunk(r.peer)

    def preempt(self, r: SReq) -> None:
        self.engine.preempt(r.peer)
        self.running.remove(r)

    def finish(self, r: SReq) -> None:
        self.engine.finish(r.peer)
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
