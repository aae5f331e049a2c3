# SPDX-License-Identifier: Apache-2.0
"""Nobody is aborted for want of memory: the last request that runs is retracted like the others.

SGLang retracts running requests until the rest can decode, but never the prompt that is half-way
through its chunks. If that prompt's slots leave no room for even one request, SGLang aborts it.
Here it goes back to the queue instead: the prompt can then finish, and any request that was
admitted fits an arena it has to itself (``DemandModel.longest_request_tokens``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext import native
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

#: How SGLang's abort of the last request begins.
_OUT_OF_MEMORY = "Out of memory even after retracting all other requests"
_RESTARTED_AT = "jenga_restarted_at"

Retraction = tuple[list["Req"], float, list["Req"]]


def retract_the_last_too(result: Retraction, batch: ScheduleBatch) -> Retraction:
    """Turn SGLang's abort of the last request into a retraction; other aborts stand.

    A request that generated nothing since its last restart is aborted after all: retrying it for
    ever would be worse.
    """
    retracted, new_token_ratio, aborted = result
    arena = batch.token_to_kv_pool_allocator
    if not isinstance(arena, ArenaAllocatorBase):
        return result
    kept = []
    for req in [req for req in aborted if _out_of_memory(req)]:
        if getattr(req, _RESTARTED_AT, None) == len(req.output_ids):
            continue
        setattr(req, _RESTARTED_AT, len(req.output_ids))
        req.to_finish = None
        aborted.remove(req)
        retracted.append(req)
        kept.append(digest_of(req))
    arena.starvation.note_retraction(
        [digest_of(req) for req in retracted],
        kept,
        [digest_of(req) for req in aborted if _out_of_memory(req)],
    )
    return retracted, new_token_ratio, aborted


def install() -> None:
    """Ask SGLang to requeue the last request, where it can: its hook is not applied there."""
    seam = native.resolved().get(native.RETRACT_LAST)
    if seam is not None:
        seam.set(True)


def note_release(req: Req, arena: ArenaAllocatorBase) -> None:
    """A request gives its memory back unpublished: where the hook is not, who is retracted."""
    if native.RETRACT_LAST not in native.resolved() or req.finished():
        return
    rid = [digest_of(req)]
    aborted = rid if _out_of_memory(req) else []
    arena.starvation.note_retraction([] if aborted or req.to_finish else rid, [], aborted)


def _out_of_memory(req: Req) -> bool:
    return getattr(req.to_finish, "message", "").startswith(_OUT_OF_MEMORY)
