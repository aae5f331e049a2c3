# SPDX-License-Identifier: Apache-2.0
"""KV-cache events are true: a router that rebuilds the cache from them believes what hits.

Every machine of :mod:`test_random_lives` with events on. After every step a subscriber applies what
was published and must know exactly the blocks that lead to a hit point, recomputed here from the
tree's pieces and the kinds' policies. Its beliefs are then tried with real matches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import zmq
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from sglang.srt.disaggregation.kv_events import KVEventBatch, ZmqEventPublisher
from sglang.srt.mem_cache.events import KVCacheEventRecorder
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from subscriber import Subscriber, replay

from image_machine import ImageMachine, picture
from machine import Machine, evict_piece, make_kinds
from sglang_jenga.core.policies import Chunked, LiveSlots, Window
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds
from test_random_lives import MACHINES, SPAN, TEXTS, Churn, run_churn

REQUEST = list(range(100, 160))


def hit_points(machine: Machine) -> set[tuple[int, ...]]:
    """Texts of the tree's nodes at whose end every kind has what a hit needs."""
    core, found = machine.tree.tree_core, set()
    window = machine.tree.window_policy

    def walk(node: Any, text: tuple[int, ...], live: LiveSlots) -> None:
        for child in node.children.values():
            here, path = LiveSlots(), (*text, *child.key.token_ids)
            here.append(live)
            data = child.component_data
            here.extend(len(child.key), live=data[ComponentType.SWA].value is not None)
            has_window = not machine.kinds.window or window.is_hit(len(path), here)
            has_state = not machine.kinds.states or data[ComponentType.MAMBA].value is not None
            if has_window and has_state:
                found.add(path)
            walk(child, path, here)

    walk(core.root_node, (), LiveSlots())
    return found


def leading_blocks(machine: Machine) -> set[tuple[int, ...]]:
    """Every text that ends with a block and leads to a hit point, itself one or not."""
    page = machine.page_tokens
    return {text[:end] for text in hit_points(machine) for end in range(page, len(text) + 1, page)}


class EventChurn(Churn):
    """Random lives with a subscriber that hears of them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Subscriber()

    @invariant()
    def the_router_knows_what_leads_to_a_hit(self) -> None:
        self.router.take(self.machine.tree.take_events())
        assert self.router.texts() == leading_blocks(self.machine)

    @rule()
    def continue_what_the_router_believes(self) -> None:
        for text in self.router.longest_texts():
            assert self.machine.hit(text) == len(text), "a prompt goes on where the chain ends"

    @rule(text=st.sampled_from(TEXTS), shared=st.integers(0, 60))
    def ask_for_any_prompt(self, text: list[int], shared: int) -> None:
        """A prompt that leaves a chain half-way may hit less, never more than a chunk boundary."""
        prompt = [*text[:shared], 999]
        believed = self.router.believes(prompt, self.machine.page_tokens)
        assert self.machine.hit(prompt[:-1]) <= believed or _is_chunked(self.machine)

    def teardown(self) -> None:
        super().teardown()
        self.router.take(self.machine.tree.take_events())
        assert self.router.blocks == {}, "the cache was drained"


def _is_chunked(machine: Machine) -> bool:
    return isinstance(machine.tree.window_policy, Chunked)


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY):
        yield


def with_events(make: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``make``, its machines recording events."""

    def build() -> Machine:
        with monkeypatch.context() as patch:
            plain = Machine._build_tree
            patch.setattr(Machine, "_build_tree", lambda self, cached, _: plain(self, cached, True))
            return make()

    return build


@pytest.mark.parametrize("name", MACHINES)
def test_after_any_churn_a_router_knows_exactly_the_blocks_that_lead_to_a_hit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_churn(EventChurn, with_events(MACHINES[name], monkeypatch))


# ---- one thing at a time -----------------------------------------------------------------------


def window_machine(**kwargs: Any) -> Machine:
    kinds = make_kinds(window_layers=3, policy=Window(window_tokens=SPAN))
    return Machine(kinds, large_pages=900, events=True, **kwargs)


def serve(machine: Machine, prompt: Sequence[int], decode_tokens: int = 0) -> list[int]:
    """Serve ``prompt``; the tokens that are cached then."""
    req = machine.prefill(prompt)
    for _ in range(decode_tokens):
        machine.decode([req])
    tokens = [*req.origin_input_ids, *req.output_ids][: req.kv.kv_committed_len]
    machine.finish(req)
    return tokens


def heard(machine: Machine) -> Subscriber:
    """A subscriber that was there from the start."""
    router = Subscriber()
    router.take(machine.tree.take_events())
    return router


def drop_piece(machine: Machine, text: Sequence[int], kind: ComponentType) -> None:
    """Evict the window or the state at the end of ``text``, which others continue."""
    core = machine.tree.tree_core
    req = machine.request([*text, 999])
    assert machine.match(req) == len(text)
    node = core.node_by_id(req.last_node)
    assert node.component_data[kind].value is not None and node.children, "an inner node"
    evict_piece(machine, node, kind)


def test_a_text_whose_window_is_gone_is_taken_back_and_stored_again_when_it_is_computed_anew() -> (
    None
):
    machine = window_machine()
    text = serve(machine, REQUEST)
    longer = serve(machine, [*text, *range(300, 305)])
    router = heard(machine)
    assert router.believes(longer, 1) == len(longer)

    drop_piece(machine, text, ComponentType.SWA)  # less than a window lies behind it
    router.take(machine.tree.take_events())
    believed = router.believes(longer, 1)
    assert believed <= len(text) - 1, "nothing behind the gap can be hit"
    assert machine.tree.full_evictable_size() == len(longer), "the full slots are all there"
    assert machine.hit(longer) == believed

    serve(machine, longer)
    router.take(machine.tree.take_events())
    assert router.believes(longer, 1) == len(longer) == machine.hit(longer)


def test_a_text_without_its_state_stays_published_while_it_leads_to_a_later_one_and_no_longer() -> (
    None
):
    machine = StateMachine(state_kinds(), large_pages=120, events=True)
    text = serve(machine, REQUEST, decode_tokens=4)
    longer = serve(machine, [*text, *range(300, 305)])
    router = heard(machine)

    drop_piece(machine, text, ComponentType.MAMBA)
    router.take(machine.tree.take_events())
    assert router.believes(longer, 1) == len(longer) == machine.hit(longer)

    core = machine.tree.tree_core
    (leaf,) = core.evictable_device_leaves
    machine.tree._evict_device_leaf(leaf.id, {ct: 0 for ct in machine.tree.tree_components})
    router.take(machine.tree.take_events())
    believed = router.believes(longer, 1)
    assert believed == machine.hit(longer) < len(text) <= machine.tree.full_evictable_size()


def test_matching_cuts_nodes_and_says_nothing() -> None:
    machine = window_machine()
    serve(machine, REQUEST)
    heard(machine)
    assert 0 < machine.hit(REQUEST[:40]) <= 40
    assert machine.tree.take_events() == []


def test_a_flush_clears_and_what_comes_after_it_begins_anew() -> None:
    machine = window_machine()
    serve(machine, REQUEST)
    router = heard(machine)
    assert router.blocks
    machine.flush()
    router.take(machine.tree.take_events())
    assert router.blocks == {} and router.cleared >= 1
    text = serve(machine, REQUEST)
    router.take(machine.tree.take_events())
    assert router.longest_texts() == [tuple(text)]


def test_what_comes_and_goes_between_two_batches_is_never_published() -> None:
    machine = window_machine()
    heard(machine)
    serve(machine, REQUEST)
    machine.tree.evict_until(lambda: False)
    router = heard(machine)
    assert router.stored == router.removed == 0


def test_images_are_blocks_before_their_text() -> None:
    machine = ImageMachine(large_pages=300, events=True)
    first = serve(machine, [*picture(1), *range(40)])
    second = serve(machine, [*picture(1, 2), *range(70)])
    router = heard(machine)
    assert {tuple(first), tuple(second)} == set(router.longest_texts())
    for text in (first, second):
        assert machine.hit(text) == len(text)
    machine.tree.evict_until(lambda: False)
    router.take(machine.tree.take_events())
    assert router.blocks == {}


def test_without_subscribers_the_tree_keeps_the_recorder_of_sglang_and_notes_nothing() -> None:
    machine = MACHINES["window"]()
    core = machine.tree.tree_core
    assert type(core.kv_events) is KVCacheEventRecorder and core.events is None
    serve(machine, REQUEST)
    assert machine.tree.take_events() == []


def test_an_adapter_and_a_salt_have_blocks_of_their_own() -> None:
    machine = window_machine()
    for salt in (None, "a", "b"):
        req = machine.request(REQUEST)
        req.cache_salt = salt
        machine.admit(req)
        machine.extend([req])
        machine.end_prefill(req)
        machine.finish(req)
    router = heard(machine)
    assert router.stored == len(router.blocks) == 3 * len(REQUEST)


# ---- over the wire -----------------------------------------------------------------------------


class Wire:
    """SGLang's own publisher, and a subscriber's socket for live events."""

    def __init__(self) -> None:
        self.publisher = ZmqEventPublisher(
            attn_dp_rank=0, endpoint="tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*"
        )
        source = self.publisher.describe_local_source(1)
        context = zmq.Context.instance()
        self.live = context.socket(zmq.SUB)
        self.live.connect(source["endpoint"])
        self.live.setsockopt(zmq.SUBSCRIBE, b"")
        time.sleep(0.5)  # a publisher sends nothing to whom it does not know yet
        self.live.setsockopt(zmq.RCVTIMEO, 20_000)
        self.replay_endpoint = source["replay_endpoint"]
        self.sent = 0

    def publish(self, machine: Machine) -> None:
        if events := machine.tree.take_events():
            self.publisher.publish(KVEventBatch(ts=time.time(), events=events))
            self.sent += 1

    def receive(self, number: int) -> list[tuple[int, bytes]]:
        batches = [self.live.recv_multipart() for _ in range(number)]
        return [(int.from_bytes(seq, "big"), payload) for _, seq, payload in batches]

    def close(self) -> None:
        self.publisher.shutdown()
        self.live.close(linger=0)


@pytest.fixture
def wire() -> Iterator[Wire]:
    one = Wire()
    yield one
    one.close()


def test_over_zmq_and_from_the_replay_a_subscriber_rebuilds_the_tree(wire: Wire) -> None:
    machine = window_machine()
    conversations = [REQUEST, [*REQUEST[:30], *range(400, 440)], list(range(500, 560))]
    for turn in range(3):
        for index, text in enumerate(conversations):
            conversations[index] = [*serve(machine, text), 700 + turn]
            wire.publish(machine)
        for _ in range(9):
            machine.tree._evict_one({ct: 0 for ct in machine.tree.tree_components})
        wire.publish(machine)
    tree = leading_blocks(machine)
    assert tree, "something is cached"

    live, late = Subscriber(), Subscriber()
    batches = wire.receive(wire.sent)
    for _, payload in batches:
        live.receive(payload)
    assert live.texts() == tree

    again = replay(wire.replay_endpoint)
    assert again == batches, "the same numbers, the same bytes"
    for _, payload in again:
        late.receive(payload)
    assert late.texts() == tree and late.removed > 0


def test_a_subscriber_that_missed_batches_asks_for_those_and_is_up_to_date(wire: Wire) -> None:
    machine, router = window_machine(), Subscriber()
    for start in (100, 300, 500):
        serve(machine, range(start, start + 60))
        wire.publish(machine)
    (first, payload), *_ = wire.receive(wire.sent)
    router.receive(payload)
    for _, payload in replay(wire.replay_endpoint, first + 1):
        router.receive(payload)
    assert router.texts() == leading_blocks(machine)
