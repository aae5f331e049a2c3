# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's own pools: split at start by a ratio, or one buffer (--enable-unified-memory).

How a model is held is SGLang's choice by architecture (``Scene.stock``):

    all-full   one pool; every layer keeps every token
    windows    a pool of full layers and one of window layers, ``--swa-full-tokens-ratio`` tokens of
               the second for each of the first (pool_configurator.py)
    states     ``--mamba-full-memory-ratio`` bytes of states for each byte of K/V; at most a request
               runs for every ``state_slots`` of them (kv_cache_configurator.py), and each holds all
               but one: its own, those that snapshots are written into, the one it continued from

Chunked layers are windows of a whole chunk there. Windows slide 128 tokens at a time, and the last
window of a prompt stays pinned in the tree while the request runs.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang_jenga.core.managers.base import Capacity, Scene, Split, Store, most_requests
from sglang_jenga.core.policies import Full

SWA_FULL_TOKENS_RATIO = 0.8
MAMBA_FULL_MEMORY_RATIO = 0.9
#: SGLANG_SWA_EVICTION_INTERVAL.
SLIDE_TOKENS = 128

_NOT_HYBRID = "SGLang has no second pool for this architecture: every layer keeps every token"


def sglang_static(scene: Scene) -> Capacity:
    """The default ratio, and beside it the one that suits these requests."""
    if scene.stock == "windows":
        stores, held = _window_pools, _window_request_bytes(scene)
        flag, default, best = "--swa-full-tokens-ratio", SWA_FULL_TOKENS_RATIO, _best_window_ratio
    elif scene.stock == "states":
        stores, held = _state_pools, _state_request_bytes(scene)
        flag, default, best = (
            "--mamba-full-memory-ratio",
            MAMBA_FULL_MEMORY_RATIO,
            _best_state_ratio,
        )
    else:
        store, held = _one_pool(scene)
        return scene.result("sglang-static", [store], held, note=_NOT_HYBRID)
    return scene.result(
        "sglang-static",
        stores(scene, default),
        held,
        split=_best(scene, stores, best, flag, default),
    )


def sglang_unified(scene: Scene) -> Capacity:
    """``--enable-unified-memory``: bytes are shared; the limit on running requests that SGLang
    takes from its pool of states stays."""
    if scene.stock == "windows":
        return scene.result(
            "sglang-unified", [_shared_windows(scene)], _window_request_bytes(scene)
        )
    if scene.stock == "states":
        cap = _state_pools(scene, MAMBA_FULL_MEMORY_RATIO)[1]
        return scene.result(
            "sglang-unified",
            [_shared_states(scene), cap],
            _state_request_bytes(scene),
            note="running requests are capped by the split it starts from",
        )
    store, held = _one_pool(scene)
    return scene.result("sglang-unified", [store], held, note=_NOT_HYBRID)


def _bytes(scene: Scene) -> int:
    return scene.total_bytes - scene.side_cache_bytes


def _one_pool(scene: Scene) -> tuple[Store, int]:
    lengths = scene.lengths
    tokens = scene.in_pages(lengths.total_tokens + lengths.image_tokens)
    pages = _bytes(scene) // (scene.token_bytes * scene.page_tokens)
    store = Store(capacity=pages * scene.page_tokens, at_end=tokens)
    return store, tokens * scene.token_bytes


# ---- windows -----------------------------------------------------------------------------------


def _cells(scene: Scene) -> tuple[int, int]:
    """Bytes of one token in the full layers, and in the window layers."""
    full = sum(s.payload_bytes for s in scene.stock_token_specs if isinstance(s.policy, Full))
    return full, sum(s.payload_bytes for s in scene.stock_token_specs) - full


def _window_tokens(scene: Scene) -> tuple[int, int]:
    """Window slots of a request at its end, and at most while it is prefilled."""
    span = max(s.policy.span_tokens or 0 for s in scene.token_specs)
    lengths = scene.lengths
    own = min(lengths.total_tokens, span + SLIDE_TOKENS)
    pinned = min(lengths.prompt_tokens, span, lengths.total_tokens - own)
    at_end = scene.in_pages(own + pinned)
    peak = scene.in_pages(min(lengths.prompt_tokens, span + lengths.step_tokens))
    return at_end, max(at_end, peak)


def _window_request_bytes(scene: Scene) -> int:
    full_cell, window_cell = _cells(scene)
    return (
        scene.in_pages(scene.lengths.total_tokens) * full_cell
        + _window_tokens(scene)[0] * window_cell
    )


def _window_pools(scene: Scene, ratio: float) -> list[Store]:
    full_cell, window_cell = _cells(scene)
    page = scene.page_tokens
    full_tokens = int(_bytes(scene) / (full_cell + ratio * window_cell)) // page * page
    at_end, peak = _window_tokens(scene)
    return [
        Store(capacity=full_tokens, at_end=scene.in_pages(scene.lengths.total_tokens)),
        Store(capacity=int(full_tokens * ratio) // page * page, at_end=at_end, peak=peak),
    ]


def _shared_windows(scene: Scene) -> Store:
    at_end, peak = _window_tokens(scene)
    held = _window_request_bytes(scene)
    return Store(
        capacity=_bytes(scene), at_end=held, peak=held + (peak - at_end) * _cells(scene)[1]
    )


def _best_window_ratio(scene: Scene, requests: int) -> float:
    at_end, peak = _window_tokens(scene)
    window = (requests - 1) * at_end + peak
    return window / (requests * scene.in_pages(scene.lengths.total_tokens))


# ---- states ------------------------------------------------------------------------------------


def _state_request_bytes(scene: Scene) -> int:
    tokens = scene.in_pages(scene.lengths.total_tokens)
    return tokens * scene.token_bytes + (scene.state_slots - 1) * scene.state_bytes


def _state_pools(scene: Scene, ratio: float) -> list[Store]:
    state, page = scene.state_bytes, scene.page_tokens
    slots = max(0, int((_bytes(scene) * ratio / (1 + ratio) - state) // state))
    left = _bytes(scene) - (slots + 1) * state
    tokens = max(0, left // scene.token_bytes // page * page)
    return [
        Store(capacity=tokens, at_end=scene.in_pages(scene.lengths.total_tokens)),
        Store(capacity=slots, at_end=scene.state_slots),
    ]


def _shared_states(scene: Scene) -> Store:
    return Store(capacity=_bytes(scene), at_end=_state_request_bytes(scene))


def _capped_states(scene: Scene) -> Store:
    """As if bytes were shared, with all the states that a running request needs to be let in."""
    held = _state_request_bytes(scene) + scene.state_bytes
    return Store(capacity=_bytes(scene), at_end=held)


def _best_state_ratio(scene: Scene, requests: int) -> float:
    share = (requests * scene.state_slots + 1) * scene.state_bytes / _bytes(scene)
    return share / (1 - share) if share < 1 else 0.0


def _best(
    scene: Scene,
    stores: Callable[[Scene, float], list[Store]],
    ratio_for: Callable[[Scene, int], float],
    flag: str,
    default: float,
) -> Split:
    """The ratio that holds most, found from what shared bytes would hold downwards: a ratio of few
    digits and whole pages lose a request at times. Steps grow with what is lost already, so that
    the search ends soon among millions of requests too."""
    shared = _shared_windows(scene) if scene.stock == "windows" else _capped_states(scene)
    at_default = most_requests(stores(scene, default))
    most = requests = most_requests([shared])
    while requests > at_default:
        for digits in (2, 3, 4, 5, 6):
            step = 10**-digits
            exact = ratio_for(scene, requests)
            for ratio in (round(exact, digits), round(exact + step / 2, digits)):
                if ratio > 0 and most_requests(stores(scene, ratio)) >= requests:
                    return Split(flag=flag, default=default, best=ratio, requests=requests)
        requests -= 1 + (most - requests) // 64
    return Split(flag=flag, default=default, best=default, requests=at_default)
