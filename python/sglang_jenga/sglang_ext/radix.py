# SPDX-License-Identifier: Apache-2.0
"""The ``jenga`` radix cache: SGLang's unified cache on host slot ids, one eviction order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE, ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import get_and_increase_time_counter

from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.policies import Policy, TokenPolicy
from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext.allocator import FULL_INDEX, ArenaAllocatorBase
from sglang_jenga.sglang_ext.embeddings import ArenaEmbeddings
from sglang_jenga.sglang_ext.eviction import EvictingRadixCache
from sglang_jenga.sglang_ext.explain import WALK, Eviction, HitLog
from sglang_jenga.sglang_ext.images import ImageAwareFullComponent, ImageTreeCore
from sglang_jenga.sglang_ext.lookahead import keep_branches, state_branch
from sglang_jenga.sglang_ext.rematch import LastMatch
from sglang_jenga.sglang_ext.req_pool import HostRows, image_tokens_of
from sglang_jenga.sglang_ext.retraction import note_release
from sglang_jenga.sglang_ext.sessions import ArenaSessions
from sglang_jenga.sglang_ext.state_cache import ArenaStateComponent
from sglang_jenga.sglang_ext.tree import CORE_NAME, ArenaTreeCore
from sglang_jenga.sglang_ext.windows import ArenaWindowComponent, take_dead_slots

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext


class ArenaRadixCache(EvictingRadixCache):
    """SGLang's unified radix cache over the arena.

    Tree values are host tensors (see :class:`HostRows`); the only device work is one asynchronous
    copy of a matched prefix when a request starts on it.
    """

    def __init__(self, params: CacheInitParams) -> None:
        arena = params.token_to_kv_pool_allocator
        #: What the kind needs that grows with the text and is not the full one, if there is one.
        self.window_policy = _window_policy(arena)
        super().__init__(params)
        self._arena = arena
        #: Records of streaming sessions, which give way too.
        self.session: ArenaSessions = ArenaSessions(self)
        self._req_pool = self.req_to_token_pool
        self._req_pool.attach_tree(self)
        if not arena.rows.shared:
            self.req_to_token_pool = HostRows(self._req_pool)
        #: Embeddings of images, where the model has an encoder: evicted by the same clock.
        self.embeddings: ArenaEmbeddings | None = arena.embeddings
        if self.embeddings is not None:
            self.embeddings.attach_tree(self)
        policies = self._policies_by_component()
        self._components_by_kind = {name: ct for ct, (name, _) in policies.items()}
        #: The same by index in the plan, the full kind included.
        self._component_at = {FULL_INDEX: BASE_COMPONENT_TYPE} | {
            index: self._components_by_kind[kind.spec.name]
            for index, kind in enumerate(arena.plan.kinds)
            if kind.spec.name in self._components_by_kind
        }
        #: What hits were, and why no longer.
        self.hits = HitLog(policies, has_images=arena.cross_kind is not None)
        #: Who is being made room for, where nobody said so.
        self.evicting_for = Eviction(cause="SGLang asked for room", starving_kind="full")
        self._last_match = LastMatch(get_and_increase_time_counter)
        #: The request that was matched last: admission decides on it next.
        self.candidate: Req | None = None
        self.starts_over = False  # it is alone and did not fit: so the next pass begins
        #: Requests that wait, in order, as the scheduler saw them last.
        self.waiting: Sequence[Req] = ()
        #: Slots evicted since start, by component; images of cross layers aside.
        self.evicted_tokens = {ct: 0 for ct in self.tree_components}

    def reset(self) -> None:
        super().reset()
        if isinstance(self.session, ArenaSessions):  # not while upstream's constructor resets
            self.session.forget()

    def _policies_by_component(self) -> dict[ComponentType, tuple[str, Policy]]:
        arena = self._arena
        found = {ComponentType.SWA: arena.token_kinds[-1], ComponentType.MAMBA: arena.state_kind}
        specs = {ct: arena.plan.kinds[k].spec for ct, k in found.items() if k is not None}
        return {
            ct: (spec.name, spec.policy) for ct, spec in specs.items() if ct in self.tree_components
        }

    # ---- matched prefixes ------------------------------------------------------------------

    def prefix_device_indices(self, req: Req) -> torch.Tensor:
        """Full slot ids of the request's matched prefix, on the device for kernels."""
        host = super().prefix_device_indices(req)
        self._req_pool.matched_prefix[req.rid] = host
        return to_device(self._arena.rows.kernel_ids(host.numpy()), self._arena.torch_device)

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Upstream's match; admission, which asks about this request next, learns of its images.

        They are cached all or none (:class:`ImageTreeCore`).
        """
        again = self._last_match.again(params)
        if again is None:
            self.tree_core.steps = []
            result = super().match_prefix(params)
        else:
            result = again
        req = params.req
        if req is None:
            return result
        self.candidate = req
        self._arena.candidate = digest_of(req)
        images = 0
        if self._arena.cross_kind is not None:
            images = image_tokens_of(req)
            self._arena.candidate_images = 0 if result.device_prefix_len else images
        if not self.disable and again is None:
            setattr(req, WALK, self.tree_core.walk(params.key, result.device_prefix_len, images))
            self._last_match.keep(params, result)
        if self.supports_mamba():
            result = result._replace(mamba_branching_seqlen=state_branch(self, req, result))
        return result

    def observe_waiting_queue(self, waiting_queue: Sequence[Req]) -> None:
        """The scheduler has ordered what waits (a seam of SGLang, or the hook in its place)."""
        self.waiting = waiting_queue

    def make_embedding_cache(self, max_size: int) -> ArenaEmbeddings | None:
        """Where forwards find embeddings of images; None: in SGLang's own cache."""
        return self.embeddings

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        super().on_release(req, checkpointed=checkpointed)
        if not checkpointed:
            note_release(req, self._arena)

    def note_start(self, req: Req) -> None:
        """``req`` starts to run on the prefix that it matched last."""
        self._last_match.forget()
        self._arena.starvation.note_start(digest_of(req))
        if not self.disable:
            walk = self.hits.note_start(req, self.tree_core.root_node)
            if walk is not None:
                self._arena.note_prompt(walk.prompt_tokens, walk.unpinned_tokens)

    # ---- sliding ---------------------------------------------------------------------------

    def evict_sliding_windows(self, req: Req, pre_len: int, *, eviction_interval: int = 1) -> None:
        if req.kv.holds_kv:
            self.slide_window(req, pre_len)

    def checkpoint_into_tree(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """Publish what ``req`` computed; window slots that it will not read again become spare.

        A prompt that leaves another one is published in two parts, up to that branch and from
        there, so that the window at the branch is one of its own.

        With the cache disabled there is no tree to publish to, but windows slide all the same.
        SGLang then slides only while it allocates the next chunk; admission asks before that, and a
        half-done prompt alone on the server would wait for its own dead slots.
        """
        if not self.supports_swa() or req.finished():
            self._publish(req, up_to, **kwargs)
        elif self.disable:
            self._publish(req, up_to, **kwargs)
            self.slide_window(req, up_to)
        else:
            window = self.tree_core.components_by_type[ComponentType.SWA]
            start = req.kv.cache_protected_len
            while start < up_to // self.page_size * self.page_size:
                now = float(get_and_increase_time_counter())
                self._publish(req, up_to, **kwargs)
                end = req.kv.cache_protected_len
                if end == start:  # no state to publish with it: windows slide as without a tree
                    self.slide_window(req, up_to)
                    break
                node = self.tree_core.node_by_id(req.last_node)
                window.spare_windows(node, end - start, since=now)
                keep_branches(self, req, start, end)
                start = end

    def _publish(self, req: Req, up_to: int, **kwargs: Any) -> None:
        """Upstream's insert; the request pins no state afterwards, it has read the one it needs.

        A head that the request made itself (a prompt shorter than it) goes first: upstream takes
        everything below the window for given back.
        """
        kv = req.kv
        slid_to = kv.get_evicted_seqlen(ComponentType.SWA)
        if kv.cache_protected_len < kv.swa_evict_floor and slid_to and not self.disable:
            kv.set_evicted_seqlen(ComponentType.SWA, 0)
            super().checkpoint_into_tree(req, up_to=kv.swa_dead_lo(self.page_size), **kwargs)
            kv.set_evicted_seqlen(ComponentType.SWA, slid_to)
        super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        if self.supports_mamba() and not self.disable:
            self.tree_core.components_by_type[ComponentType.MAMBA].unpin(req)

    def release_swa_prefix_lock(self, req: Req) -> None:
        """A prompt's window is pinned no longer than it is read; a head is read for good."""
        if not self.window_policy.head_tokens:
            self._last_match.forget()
            super().release_swa_prefix_lock(req)

    def shorten_prefix_lock(self, req: Req) -> None:
        """Unpin what a decoding request will not read again of its prompt's window.

        It stays cached, last used now. Upstream pins the whole until a window of tokens has been
        generated. :attr:`DemandModel.unpin_tokens` says why not token by token.
        """
        lock, kind = (self.session.borrowed_slot(req) or req).lock, ComponentType.SWA
        if (
            self.window_policy.head_tokens
            or lock is None
            or lock.swa_released
            or kind not in lock.receipt.component_lock_uuids
        ):
            return
        node = self.tree_core.node_by_id(lock.node)
        prefix_tokens = node.end_tokens
        dead = self.window_policy.dead_before(req.seqlen - 1, page_tokens=self.page_size)
        read_tokens = prefix_tokens - dead
        pinned_tokens = min(self.window_policy.span_tokens or 0, prefix_tokens)
        if read_tokens <= 0 and lock is not req.lock:
            # A later turn of a session; a turn's own steps say nothing of how far its window moved.
            self.release_swa_prefix_lock(req)
        elif 0 < read_tokens <= pinned_tokens - self._arena.demand.unpin_tokens:
            window = self.tree_core.components_by_type[kind]
            self._last_match.forget()
            window.shorten_lock(node, lock.receipt, read_tokens)

    def slide_window(self, req: Req, num_tokens: int) -> None:
        """Free the request's window slots that are dead once it has ``num_tokens`` tokens."""
        self._free_windows([self._dead_slots(req, num_tokens)])

    def slide_windows(self, reqs: Iterable[Req]) -> None:
        """``evict_sliding_windows`` before a decode step, for all of ``reqs`` in one go."""
        self._free_windows([self._dead_slots(req, req.seqlen - 1) for req in reqs])

    def _dead_slots(self, req: Req, num_tokens: int) -> torch.Tensor | None:
        return take_dead_slots(
            req,
            num_tokens,
            policy=self.window_policy,
            page_tokens=self.page_size,
            row=self.req_to_token_pool.req_to_token[req.kv.req_pool_idx],
        )

    def _free_windows(self, segments: list[torch.Tensor | None]) -> None:
        """Free the window slots paired with these full slots, page-aligned segments of rows."""
        dead = [segment for segment in segments if segment is not None]
        if dead:
            slots = dead[0] if len(dead) == 1 else torch.cat(dead)
            self._arena.free_swa_segment(slots, start_pos=0)

    # ---- eviction --------------------------------------------------------------------------

    def evictable_slots(self, kind: int) -> int:
        """Slots of one kind (its index in the plan) that are cached and nobody pins."""
        component = self._component_at.get(kind)
        if component is not None:
            slots: int = self.tree_core.component_evictable_size_[component]
            return slots
        if kind == self._arena.vision_kind:
            return int(self._arena.used_slots(kind))
        return 0 if self.disable else int(self.tree_core.evictable_images)

    def reclaimable_slots(self, kind: int) -> int:
        """Slots of one kind that requests can have: cached, or in idle records of sessions."""
        return self.evictable_slots(kind) + self.session.idle_slots(kind)


def _window_policy(arena: ArenaAllocatorBase) -> TokenPolicy:
    policy = arena.plan.kinds[arena.token_kinds[-1]].spec.policy
    assert isinstance(policy, TokenPolicy), "kinds that grow with text have one"
    return policy


def build_radix_cache(ctx: TreeCacheBuildContext) -> ArenaRadixCache:
    """Factory behind ``--radix-cache-backend jenga``.

    Raises:
        ConfigError: SGLang built its own pools although ours were asked for (a hook is missing).
    """
    allocator = ctx.params.token_to_kv_pool_allocator
    if not isinstance(allocator, ArenaAllocatorBase):
        raise ConfigError(
            "--radix-cache-backend jenga: SGLang built its own KV pools "
            f"({type(allocator).__name__}), so the plugin's pool hook did not run. Check the log "
            "for 'Failed to apply hooks' and that sglang-jenga matches this SGLang version; to "
            "serve without Jenga drop the flag."
        )
    ctx.params.tree_core_backend = CORE_NAME
    ctx.params.component_registry_override = {
        ComponentType.SWA: ArenaWindowComponent,
        ComponentType.MAMBA: ArenaStateComponent,
    }
    if allocator.cross_kind is not None:
        ctx.params.component_registry_override[ComponentType.FULL] = ImageAwareFullComponent
    return create_unified_radix_cache(ctx, cache_class=ArenaRadixCache)


def make_tree_core(params: Any, components: dict[ComponentType, Any]) -> ArenaTreeCore:
    """Factory for SGLang's tree core registry."""
    has_images = params.token_to_kv_pool_allocator.cross_kind is not None
    return (ImageTreeCore if has_images else ArenaTreeCore)(params, components)
