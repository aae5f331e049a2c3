# SPDX-License-Identifier: Apache-2.0
"""Drives the test kits that SGLang ships and says what they computed.

The wheel has upstream's kits (``sglang/test/kits``) but not the tests that use them. So a seeded
churn of the unified radix cache runs here on every configuration of the kit, checked after each
step, and the kit's own fuzz of locks; what they compute must be the same with and without a patch.
The python tree core: the wheel lacks the inspection build of the other one, and no patch here can
change it. Imported by ``state_worker`` in a state's own process.
"""

from __future__ import annotations

import random
import unittest
from array import array
from typing import Any

_SEEDS = (1, 2)
_STEPS = 60


def probe() -> dict[str, str]:
    """What each configuration left behind, or what was raised, as text by name."""
    from sglang.test.test_utils import maybe_stub_sgl_kernel

    maybe_stub_sgl_kernel()
    from sglang.test.kits.unified_radix_cache.config import CONFIGS

    found = {}
    for place, config in enumerate(CONFIGS):
        found[f"churn {place} {config.label}"] = _said(_churn, config)
        if config.has_swa and not config.has_mamba and config.page_size == 1:
            found[f"locks {place} {config.label}"] = _said(_lock_fuzz, config)
    return found


def _said(drive: Any, config: Any) -> str:
    try:
        return str(drive(config))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]


def _lock_fuzz(config: Any) -> str:
    """The kit's own fuzz of locks, which checks itself."""
    from sglang.test.kits.unified_radix_cache.insert_walk import SegmentLockFuzzFixtures

    case = type("Fuzz", (SegmentLockFuzzFixtures, unittest.TestCase), {"cfg": config})()
    for seed in _SEEDS:
        case._run_seed(seed, _STEPS)
    return "passed"


def _churn(config: Any) -> list[tuple[int, ...]]:
    """Inserts, matches and evictions on the kit's fixture; the sizes after each."""
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams
    from sglang.test.kits.unified_radix_cache.fixtures import build_fixture, match_prefix
    from sglang.test.kits.unified_radix_cache.mixins import UnifiedRadixCacheFixtures

    case = type("Churn", (UnifiedRadixCacheFixtures, unittest.TestCase), {"cfg": config})()
    cache, allocator, rows = build_fixture(config)
    draw = random.Random(7)
    page, sizes, known = config.page_size, [], [array("q", [0])]
    for step in range(12):
        start = list(draw.choice(known)) if draw.random() < 0.5 else []
        tokens = start[: len(start) // page * page] + case._make_seq(1000 * (step + 1), 2)
        room = min(allocator.available_size(), rows.available_size() * config.kv_size)
        if room < len(tokens) + page or len(known) > 5:
            cache.evict(EvictParams(num_tokens=len(tokens), swa_num_tokens=page, mamba_num=1))
        if allocator.available_size() < len(tokens) + page or rows.available_size() == 0:
            continue
        case._insert(cache, allocator, rows, tokens)
        known.append(array("q", tokens))
        hit = match_prefix(cache, draw.choice(known)).device_prefix_len
        cache.sanity_check()
        sizes.append((hit, allocator.available_size(), cache.full_evictable_size()))
    return sizes
