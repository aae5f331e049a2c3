# SPDX-License-Identifier: Apache-2.0
"""Admission is a promise: who is admitted gets memory, and who fits an empty arena is admitted.

Random traffic runs through SGLang's own ``PrefillAdder`` (see scheduler.py) on arenas tight enough
to evict and to retract. A broken promise raises there.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from machine import Machine, make_kinds, make_plan
from scheduler import Loop
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.memory import Sparing
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.admission import ArenaPrefillBudget
from sglang_jenga.sglang_ext.config import TEST_SEED
from sglang_jenga.sglang_ext.model_kinds import ModelKinds

W = 24
KINDS = {
    "uniform": make_kinds(full_layers=1),
    "window": make_kinds(full_layers=1, window_layers=5, policy=Window(window_tokens=W)),
    "few windows": make_kinds(full_layers=4, window_layers=1, policy=Window(window_tokens=W)),
    "chunked": make_kinds(full_layers=1, window_layers=3, policy=Chunked(chunk_tokens=W)),
}
SMALL_ARENA_TOKENS = 300
SEED = int(os.environ.get(TEST_SEED, "0"))


def make_machine(
    kinds: ModelKinds,
    *,
    page_tokens: int = 1,
    chunk_tokens: int | None = 40,
    longest: int = SMALL_ARENA_TOKENS,
    cached: bool = True,
) -> Machine:
    """The smallest arena in which a request of ``longest`` tokens fits alone."""

    def holds(large_pages: int) -> bool:
        plan = make_plan(kinds, page_tokens=page_tokens, large_pages=large_pages)
        demand = DemandModel(plan=plan, window=kinds.window_policy, chunk_tokens=chunk_tokens)
        return demand.longest_request_tokens >= longest

    return Machine(
        kinds,
        large_pages=bisect_left(range(2000), True, lo=3, key=holds),
        page_tokens=page_tokens,
        chunk_tokens=chunk_tokens,
        context_tokens=2 * longest,
        rows=12,
        cached=cached,
    )


def traffic(machine: Machine, seed: int, *, requests: int) -> Loop:
    """Random prompts, many with a shared beginning, arriving a few at a time."""
    rng = random.Random(seed)
    loop = Loop(machine=machine, new_token_ratio=rng.choice((0.05, 0.3, 1.0)))
    longest = machine.demand.longest_request_tokens
    roots = [[rng.randrange(1000) for _ in range(longest)] for _ in range(3)]
    served: list[list[int]] = []
    for _ in range(requests):
        prompt = [rng.randrange(1000) for _ in range(rng.randrange(1, longest // 3))]
        if served and rng.random() < 0.3:  # the next turn of a conversation
            prompt = rng.choice(served) + prompt[:20]
        elif rng.random() < 0.6:
            prompt = rng.choice(roots)[: rng.randrange(longest // 2)] + prompt
        prompt = prompt[: longest - 2 * machine.page_tokens - 1]
        req = machine.request(prompt, max_new=rng.randrange(1, 60))
        assert loop.submit(req), "a prompt shorter than the longest request fits"
        for _ in range(rng.randrange(6)):
            if loop.waiting or loop.running or loop.chunked:
                loop.step()
                assert machine.arena.core.audit() == []
        served.append(prompt + list(req.output_ids))
    return loop


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_no_allocation_fails_after_admission_and_nobody_starves(
    kinds: ModelKinds, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(kinds, page_tokens=page_tokens, cached=cached)
    loop = traffic(machine, SEED + 3, requests=25)
    loop.run()
    assert machine.problems() == []
    machine.flush()
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


def test_the_traffic_of_these_tests_evicts_and_retracts() -> None:
    """Guard: in a roomy arena the claim above would be empty."""
    machine = make_machine(KINDS["window"])
    loop = traffic(machine, 3, requests=25)
    loop.run()
    assert loop.retractions > 0
    assert all(tokens > 0 for tokens in machine.tree.evicted_tokens.values())


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_the_longest_request_is_served_by_an_idle_server_whatever_it_has_cached(
    kinds: ModelKinds, page_tokens: int
) -> None:
    rng = random.Random(SEED)
    machine = make_machine(kinds, page_tokens=page_tokens)
    longest = machine.demand.longest_request_tokens
    for pinned in (0, 60):  # tokens that the request finds in the cache, and so pins
        for _ in range(12):
            others = [rng.randrange(1000) for _ in range(rng.randrange(1, 100))]
            machine.finish(machine.prefill(others, max_new=1, chunk=20))
        output = rng.randrange(40, longest // 2)
        prompt = [rng.randrange(1000) for _ in range(longest - output - page_tokens)]
        if pinned:
            machine.finish(machine.prefill(prompt[:pinned], max_new=1))
            assert machine.hit(prompt) == pinned // page_tokens * page_tokens
        loop = Loop(machine=machine)
        req = machine.request(prompt, max_new=output)
        assert loop.submit(req)
        loop.run()
        assert len(req.output_ids) == output
        assert loop.retractions == 0, "it had the server to itself"


def test_a_request_longer_than_the_arena_is_refused_at_once() -> None:
    machine = make_machine(KINDS["window"])
    longest = machine.demand.longest_request_tokens
    loop = Loop(machine=machine)
    assert not loop.submit(machine.request(range(longest)))
    req = machine.request(range(longest - 11), max_new=500)
    assert loop.submit(req)
    assert req.sampling_params.max_new_tokens == 10, "clipped to what fits beside the prompt"


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kind", ["window", "chunked"])
def test_decisions_depend_on_the_stream_of_requests_alone(kind: str, page_tokens: int) -> None:
    """Tensor-parallel ranks decide apart and must stay together, slot for slot."""
    logs = []
    for _ in range(2):
        loop = traffic(make_machine(KINDS[kind], page_tokens=page_tokens), SEED + 7, requests=20)
        loop.run()
        logs.append(loop.log)
    assert len(logs[0]) > 100 and logs[0] == logs[1]


# ---- a half-done prompt ------------------------------------------------------------------------


def half_done(machine: Machine, *, tokens: int) -> Req:
    """A prompt that has computed ``tokens`` tokens and waits for its next chunk."""
    req = machine.request(range(500, 500 + 2 * tokens))
    machine.admit(req, tokens=tokens)
    machine.extend([req])
    machine.stash(req)
    return req


def retract(machine: Machine, running: list[Req]) -> tuple[list[Req], float, list[Req]]:
    """What SGLang does when running requests cannot decode: (retracted, ratio, aborted)."""
    batch = machine.batch(running, ForwardMode.DECODE)
    assert not batch.check_decode_mem()
    return batch.retract_decode()


def test_the_last_request_gives_way_to_a_half_done_prompt_and_is_not_aborted() -> None:
    machine = make_machine(KINDS["uniform"])
    half_done(machine, tokens=machine.arena.available_size() - 10)
    last = machine.prefill(range(10), max_new=100)
    retracted, _, aborted = retract(machine, [last])
    assert (retracted, aborted) == ([last], [])
    assert last.to_finish is None and not last.kv.holds_kv


def test_a_request_that_made_no_progress_since_its_restart_is_aborted() -> None:
    machine = make_machine(KINDS["uniform"], cached=False)
    last = machine.prefill(range(9), max_new=100)
    for again in (False, True):
        if again:
            machine.admit(last)
            machine.extend([last])
        free = machine.arena.available_size()
        others = machine.arena.core.extend([machine.rows.num_rows - 1], [[free]])[0]
        retracted, _, aborted = retract(machine, [last])
        assert (retracted, aborted) == (([], [last]) if again else ([last], []))
        machine.arena.core.free(0, others)
    assert last.to_finish.message.startswith("Out of memory")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
def test_a_half_done_prompt_gives_its_dead_window_slots_back_before_its_next_chunk(
    cached: bool,
) -> None:
    machine = make_machine(KINDS["window"], cached=cached, longest=600)
    half_done(machine, tokens=100)
    machine.tree.evict_until(lambda: False)
    assert machine.arena.used_slots(0) == 100
    # The tree pins one page more than the window, for the same prompt sent again.
    assert machine.arena.used_slots(1) == W + (1 if cached else 0)


# ---- the budget object by itself ---------------------------------------------------------------


def budget(machine: Machine) -> ArenaPrefillBudget:
    return machine.arena.create_prefill_budget(machine.tree)


def check(budget: ArenaPrefillBudget, extend: int, *, max_new: int, chunk: int | None = None):  # type: ignore[no-untyped-def]
    return budget.check_prefill(
        extend_input_len=extend,
        total_tokens=extend + max_new,
        max_new_tokens=max_new,
        input_tokens=extend,
        swa_host_hit_length=0,
        chunk_limit=chunk,
    )


def test_an_idle_server_shortens_the_chunk_rather_than_refuse() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=40)
    longest = machine.demand.longest_request_tokens
    admitted, chunk = check(budget(machine), longest, max_new=0, chunk=longest)
    assert admitted and chunk is not None and 0 < chunk < longest
    assert machine.arena.core.fits([chunk] * 2) and not machine.arena.core.fits([chunk + 1] * 2)


def test_a_busy_server_makes_a_newcomer_wait_for_what_running_requests_may_still_need() -> None:
    machine = make_machine(KINDS["uniform"], chunk_tokens=None)
    running = machine.prefill(range(100), max_new=500)
    machine.decode([running])
    longest = machine.demand.longest_request_tokens
    held = 100 + 1
    room = longest - held
    asking = budget(machine)
    assert check(asking, room - 10, max_new=10) == (True, None)
    asking.total_offset = 20  # what SGLang expects the running request to generate
    assert check(asking, room - 10, max_new=10) == (False, None)
    assert check(asking, room - 40, max_new=10) == (True, None)


def test_what_was_promised_in_this_pass_is_not_promised_again() -> None:
    machine = make_machine(KINDS["uniform"], chunk_tokens=None)
    asking = budget(machine)
    free = machine.arena.available_size()
    first = free // 2
    assert check(asking, first, max_new=0)[0]
    asking.reserve(first, 0)
    assert not check(asking, free - first + 1, max_new=0)[0]
    assert check(asking, free - first - 2 * machine.page_tokens, max_new=0)[0]


def test_a_candidate_that_could_never_finish_evicts_nothing() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=None)
    machine.finish(machine.prefill(range(60), max_new=1))
    machine.prefill(range(200, 240), max_new=500)
    cached = machine.tree.full_evictable_size()
    asking = budget(machine)
    assert not check(asking, 10, max_new=100_000)[0]
    assert machine.tree.full_evictable_size() == cached > 0


def run_past_its_prompt(machine: Machine, prompt_tokens: int) -> None:
    """A request that decodes; nothing is evictable but windows of its prompt."""
    running = machine.prefill(range(prompt_tokens), max_new=500, chunk=40)
    for _ in range(3 * W):
        machine.decode([running])
    while machine.tree.tree_core.lru_lists[ComponentType.SWA].oldest_spare() is not None:
        machine.tree._evict_one({ct: 0 for ct in machine.tree.tree_components})
    assert machine.tree.full_evictable_size() == 0 < machine.tree.swa_evictable_size()


def test_a_newcomer_waits_rather_than_take_the_window_at_the_end_of_a_running_prompt() -> None:
    machine = make_machine(KINDS["few windows"], chunk_tokens=None)
    run_past_its_prompt(machine, 150)
    machine.arena.note_prompt(100, 20)
    free, windows = machine.arena.available_size(), machine.tree.swa_evictable_size()
    assert check(budget(machine), free + 2, max_new=0) == (False, None)
    assert machine.tree.swa_evictable_size() == windows
    assert machine.arena.reclaim(machine.tree, [free + 2] * 2), "a window would have sufficed"
    assert machine.tree.swa_evictable_size() < windows


def test_where_nobody_hits_a_newcomer_takes_that_window() -> None:
    machine = make_machine(KINDS["few windows"], chunk_tokens=None)
    run_past_its_prompt(machine, 150)
    free, windows = machine.arena.available_size(), machine.tree.swa_evictable_size()
    assert check(budget(machine), free + 2, max_new=0)[0]
    assert machine.tree.swa_evictable_size() < windows


def test_newcomers_leave_the_cache_a_sixteenth_of_what_it_saves() -> None:
    machine = make_machine(KINDS["uniform"], chunk_tokens=None, longest=1600)
    machine.finish(machine.prefill(range(1000), max_new=1))
    machine.prefill(range(5000, 5400), max_new=500)
    asking = budget(machine)
    usable = machine.arena.usable_slots(0)

    def longest_newcomer() -> int:
        asking = budget(machine)
        return bisect_left(range(usable), True, key=lambda n: not asking._fits_eventually(n, 0, 1))

    all_of_it = longest_newcomer()
    assert check(asking, all_of_it - 1, max_new=0) == (True, None)
    for _ in range(100):
        machine.arena.note_prompt(1000, 800)
    assert all_of_it - longest_newcomer() == round(usable * 0.8 / 16) > 0
    for _ in range(400):
        machine.arena.note_prompt(1000, 0)
    assert longest_newcomer() == all_of_it


def test_only_what_nobody_else_holds_counts_as_saved_by_the_cache() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=None, longest=1000)
    prompt = range(100)
    first = machine.prefill(prompt, max_new=1)
    second = machine.prefill([*prompt, 500, 501], max_new=1)
    assert machine.tree.hits.hit_tokens == 100 and machine.arena.hit_share == 0
    machine.finish(first)
    machine.finish(second)
    machine.finish(machine.prefill([*prompt, 700, 701], max_new=1))
    assert machine.tree.hits.hit_tokens == 200 and machine.arena.hit_share > 0.3


def test_a_newcomer_takes_a_window_that_holds_more_bytes_than_it_keeps_useful() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=None)
    run_past_its_prompt(machine, 100)  # 100 slots of one full layer, 24 slots of five others
    free, windows = machine.arena.available_size(), machine.tree.swa_evictable_size()
    assert check(budget(machine), free + 2, max_new=0)[0]
    assert machine.tree.swa_evictable_size() < windows


def test_a_half_done_prompt_takes_such_a_window() -> None:
    machine = make_machine(KINDS["few windows"], chunk_tokens=40)
    run_past_its_prompt(machine, 150)
    free, windows = machine.arena.available_size(), machine.tree.swa_evictable_size()
    asking = budget(machine)
    assert asking.fit_chunk(extend_input_len=free + 2, max_new_tokens=0, chunk_limit=free + 2)
    assert machine.tree.swa_evictable_size() < windows


SYSTEM_PROMPT = range(1000, 1000 + 2 * W)


def run_behind_a_shared_prompt(machine: Machine, num_prompts: int) -> None:
    """Requests decode beyond their prompts; evictable are windows of the prompt that all share."""
    tails = [range(100 * i, 100 * i + 3 * W) for i in range(num_prompts)]
    running = [machine.prefill([*SYSTEM_PROMPT, *tail], max_new=500, chunk=40) for tail in tails]
    machine.hit([*SYSTEM_PROMPT, 1])
    for _ in range(2):
        machine.decode(running)
    while machine.tree.tree_core.oldest(Sparing.SHARED) is not None:
        machine.tree._evict_one({ct: 0 for ct in machine.tree.tree_components}, Sparing.SHARED)


def test_a_half_done_prompt_takes_a_shorter_chunk_before_a_window_that_many_prompts_need() -> None:
    """Its window holds 2.5 times the bytes of its full slots: too dear for one, cheap for four."""
    machine = make_machine(KINDS["window"], chunk_tokens=40, longest=1000)
    run_behind_a_shared_prompt(machine, 4)
    windows = machine.tree.swa_evictable_size()
    assert windows >= W and machine.hit([*SYSTEM_PROMPT, 1]) == len(SYSTEM_PROMPT)
    asking = budget(machine)
    chunk = asking.fit_chunk(extend_input_len=10_000, max_new_tokens=0, chunk_limit=10_000)
    assert chunk is not None and 0 < chunk < 10_000
    assert machine.tree.swa_evictable_size() == windows
    assert machine.arena.reclaim(machine.tree, [chunk + 2] * 2), "it would have sufficed for more"


def test_a_window_that_few_prompts_need_is_not_worth_a_shorter_chunk() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=40, longest=1000)
    run_behind_a_shared_prompt(machine, 2)
    assert machine.tree.swa_evictable_size() == 0


def test_fit_chunk_gives_the_longest_chunk_that_is_free_now() -> None:
    machine = make_machine(KINDS["window"], chunk_tokens=40)
    holder = machine.prefill(range(150), max_new=500, chunk=40)
    asking = budget(machine)
    chunk = asking.fit_chunk(extend_input_len=10_000, max_new_tokens=0, chunk_limit=10_000)
    assert chunk is not None and 0 < chunk < 10_000
    assert machine.arena.core.fits([chunk] * 2) and not machine.arena.core.fits([chunk + 1] * 2)
    assert asking.fit_chunk(extend_input_len=5, max_new_tokens=0, chunk_limit=40) == 40
    machine.finish(holder)


def test_fit_chunk_parks_a_chunk_when_nothing_is_free() -> None:
    machine = make_machine(KINDS["uniform"], chunk_tokens=40)
    machine.prefill(range(machine.arena.available_size()), max_new=1)
    assert budget(machine).fit_chunk(extend_input_len=9, max_new_tokens=0, chunk_limit=40) is None
