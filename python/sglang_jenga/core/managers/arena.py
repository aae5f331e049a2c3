# SPDX-License-Identifier: Apache-2.0
"""The arena, and the geometries that the paper argues against."""

from __future__ import annotations

from sglang_jenga.core.capacity import requests_that_fit, small_pages_needed
from sglang_jenga.core.geometry import max_geometry
from sglang_jenga.core.managers.base import Capacity, Scene, Store, demands
from sglang_jenga.core.sizing import SizedArena


def jenga(sized: SizedArena, scene: Scene) -> Capacity:
    """The server's own plan; requests share large pages, as they do under load.

    A window slides some tokens at a time (``DemandModel.slide_interval_tokens``), so a request may
    hold as many dead slots. It holds most of them just before its prompt's window is unpinned
    (``DemandModel.unpin_tokens``), which may take more than its end does.
    """
    plan, lengths = sized.plan, scene.lengths
    interval = sized.demand.slide_interval_tokens
    pinned_tokens = 0  # generated while the prompt's window is pinned as a whole
    if interval:
        until = -(-sized.demand.unpin_tokens // interval) * interval
        pinned_tokens = min(lengths.output_tokens, until)
    slide = interval if pinned_tokens < lengths.output_tokens else max(interval, pinned_tokens)
    requests = min(
        requests_that_fit(
            plan,
            lengths.prompt_tokens,
            output_tokens,
            image_tokens=lengths.image_tokens,
            chunk_tokens=lengths.step_tokens,
            slide_tokens=slide_tokens,
        )
        for output_tokens, slide_tokens in (
            (pinned_tokens, max(interval, pinned_tokens)),
            (lengths.output_tokens, slide),
        )
    )
    shown = max(1, requests)
    large_pages = sum(
        -(-shown * small_pages_needed(kind, lengths.end(slide)) // kind.small_pages_per_large_page)
        for kind in plan.kinds
    )
    return Capacity(
        manager="jenga",
        requests=requests,
        needed_bytes=shown * scene.needed_bytes,
        held_bytes=large_pages * plan.large_page_bytes,
        total_bytes=scene.total_bytes,
    )


def all_full(scene: Scene) -> Capacity:
    """One pool: every layer keeps every token, text and image; states as they are."""
    lengths = scene.lengths
    tokens = scene.in_pages(lengths.total_tokens + lengths.image_tokens)
    held = tokens * scene.token_bytes + scene.state_bytes
    return scene.result("all-full", [Store(capacity=scene.total_bytes, at_end=held)], held)


def gcd_pages(scene: Scene) -> Capacity:
    """Pages of the greatest common divisor: nothing is lost, and no kernel can follow the ids."""
    at_end = peak = 0
    for demand in demands(scene, scene.request_specs, scene.page_tokens):
        tokens = scene.page_tokens if demand.spec.policy.PAGED_BY_TOKENS else 1
        at_end += demand.at_end_pages * tokens * demand.spec.payload_bytes
        peak += demand.peak_pages * tokens * demand.spec.payload_bytes
    store = Store(capacity=scene.total_bytes, at_end=at_end, peak=peak)
    return scene.result("gcd", [store], at_end, note="on paper: no kernel can follow its page ids")


def max_pages(scene: Scene) -> Capacity:
    """Pages as large as the largest small page: every kind's page takes one."""
    page_bytes = max_geometry(scene.request_specs, page_tokens=scene.page_tokens).page_bytes
    found = demands(scene, scene.request_specs, scene.page_tokens)
    at_end = sum(demand.at_end_pages for demand in found)
    store = Store(
        capacity=scene.total_bytes // page_bytes,
        at_end=at_end,
        peak=sum(demand.peak_pages for demand in found),
    )
    return scene.result("max", [store], at_end * page_bytes)
