# SPDX-License-Identifier: Apache-2.0
"""How many requests each KV manager holds in the same bytes, and what it wastes on them.

All requests are alike: a prompt, an output, maybe an image, no shared prefix. Every one is at its
last token, except that one of them is still being prefilled where that takes more. Per manager

    requests   the most for which every store has room:  (r - 1) * at_end + peak <= capacity
    waste      1 - needed / held: needed is what the layers read for these requests, held what the
               requests keep others from using, with padding, page ends, tokens that no layer reads
               any more and states set aside
    used       needed / all bytes: also counts what no request can use, the other side of a split
               and the rest that is too small for one more

    jenga            the arena, as the server plans it
    sglang-static    SGLang's pools, split by its default ratio; also the ratio that would be best
    sglang-unified   --enable-unified-memory
    vllm             vLLM's hybrid KV manager
    all-full         one pool in which every layer keeps every token
    gcd, max         the paper's comparison geometries

The models of other managers follow SGLang 0.5.23 and vLLM 0.33.0: arithmetic, not measurements.
"""

from __future__ import annotations

from sglang_jenga.core.managers.arena import all_full, gcd_pages, jenga, max_pages
from sglang_jenga.core.managers.base import Capacity, Lengths, Manager, Scene, Split
from sglang_jenga.core.managers.sglang import sglang_static, sglang_unified
from sglang_jenga.core.managers.vllm import vllm
from sglang_jenga.core.sizing import SizedArena

__all__ = ["Capacity", "Lengths", "Manager", "Scene", "Split", "compare"]


def compare(sized: SizedArena, scene: Scene) -> tuple[Capacity, ...]:
    """Every manager on the same bytes, jenga first."""
    others = (sglang_static, sglang_unified, vllm, all_full, gcd_pages, max_pages)
    return (jenga(sized, scene), *(manager(scene) for manager in others))
