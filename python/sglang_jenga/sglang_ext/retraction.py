# SPDX-License-Identifier: Apache-2.0
"""Nobody waits for ever, and nobody is aborted for want of memory who could run alone.

SGLang retracts running requests until the rest can decode, but never the prompt that is half-way
through its chunks. If that prompt's slots leave no room for even one request, SGLang aborts it.
Here it goes back to the queue instead: the prompt can then finish, and any request that was
admitted fits an arena it has to itself (``DemandModel.longest_request_tokens``).

A half-done prompt that is alone and cannot go on goes back to the queue too. What has been sent
back once and got no further is answered with an error that says who holds the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext import native
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
from sglang_jenga.sglang_ext.starvation import describe_holders

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

#: How SGLang's abort of the last request begins.
_OUT_OF_MEMORY = "Out of memory even after retracting all other requests"
_RESTARTED_AT = "jenga_restarted_at"

Retraction = tuple[list["Req"], float, list["Req"]]


def retract_the_last_too(result: Retraction, batch: ScheduleBatch) -> Retraction:
    """Turn SGLang's abort of the last request into a retraction; other aborts stand.

    A request that generated nothing since its last restart is aborted after all: retrying it for
    ever would be worse. Its error names who holds the bytes.
    """
    retracted, new_token_ratio, aborted = result
    arena = batch.token_to_kv_pool_allocator
    if not isinstance(arena, ArenaAllocatorBase):
        return result
    kept = []
    for req in [req for req in aborted if _out_of_memory(req)]:
        if not _may_restart(req, req.seqlen):
            continue
        req.to_finish = None
        aborted.remove(req)
        retracted.append(req)
        kept.append(digest_of(req))
    given_up = [req for req in aborted if _out_of_memory(req)]
    for req in given_up:
        req.to_finish.message = _message(arena, batch.tree_cache)
    for req in aborted:
        if req.session is not None and req.session.streaming:
            req.session.abort_req()  # it is not finished later: the session may have another turn
    arena.starvation.note_retraction(
        [digest_of(req) for req in retracted],
        kept,
        [digest_of(req) for req in given_up],
    )
    return retracted, new_token_ratio, aborted


def retract_half_done(refused: Req, adder: PrefillAdder) -> Req | None:
    """``refused`` is half-way through its prompt, and its next chunk does not fit.

    It keeps what it has while others run, who will give way. If none do it goes back to the head of
    the queue (None: it is half-done no longer): alone in the arena it fits.
    """
    arena, tree_cache = adder.token_to_kv_pool_allocator, adder.tree_cache
    if adder.running_batch.reqs or refused.inflight_middle_chunks > 0:
        return refused
    may_restart = _may_restart(refused, refused.prefix_len)
    _release(refused, arena, tree_cache)
    rid = digest_of(refused)
    if may_restart:
        arena.starvation.note_half_done(arena, tree_cache, rid)
        tree_cache.start_over()
    else:
        give_up(refused, arena, tree_cache)
    tree_cache.waiting.insert(0, refused)
    return None


def give_up(req: Req, arena: ArenaAllocatorBase, tree_cache: Any) -> None:
    """Answer a waiting request with an error: nothing that could make room for it is left.

    SGLang's way to do that: it becomes a prompt of one token, and its answer the error.
    """
    if req.to_finish is not None:
        return
    message = _message(arena, tree_cache)
    arena.starvation.note_given_up(digest_of(req), message)
    req.set_finish_with_abort(message, status_code=503, err_type="ServiceUnavailable")


def _release(req: Req, arena: ArenaAllocatorBase, tree_cache: Any) -> None:
    from sglang.srt.managers.schedule_batch import release_req

    release_req(
        req=req,
        remaing_req_count=0,
        req_to_token_pool=arena.req_pool,
        token_to_kv_pool_allocator=arena,
        tree_cache=tree_cache,
        hisparse_coordinator=None,
    )


def _may_restart(req: Req, progress: int) -> bool:
    """Whether ``req`` got further than when it was sent back last. ``progress``: its tokens."""
    if getattr(req, _RESTARTED_AT, -1) >= progress:
        return False
    setattr(req, _RESTARTED_AT, progress)
    return True


def _message(arena: ArenaAllocatorBase, tree_cache: Any) -> str:
    return (
        "Out of memory: the request does not fit although nothing else can give way. "
        f"{describe_holders(arena, tree_cache)}. Send it again with fewer tokens, close sessions, "
        "or raise the server's memory (--mem-fraction-static or --jenga-arena-size)."
    )


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
