# SPDX-License-Identifier: Apache-2.0
"""Why a hit was as long as it was: which kind cut it, at which token, and what took the piece.

Four moments, of which only the last costs anything worth counting:

    a match     the nodes on the way and which of their pieces are there, kept on the request
    an eviction its cause: on the node that lost a piece, on the parent of a node that went whole
    a start     sums; causes may change later, so those that matter are copied: :class:`Start`
    a question  the reports of the last requests are worked out: :class:`HitReport`

Reports and sums are in ``/server_info``; ``sglang-jenga explain`` reads them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.mem_cache.unified_cache.components import ComponentType

from sglang_jenga.core.policies import LiveSlots, Policy, State
from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext.model_kinds import CROSS

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

#: Reports kept for ``/server_info``.
KEPT_REPORTS = 128
#: Causes remembered per node for children that went; the root has the most.
_KEPT_CAUSES = 1024
#: Attribute of a request that holds what its last match saw.
WALK = "jenga_walk"
_CAUSE = "jenga_evicted_by"
_CHILDREN = "jenga_evicted_children"


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """What a piece of the cache gave way to.

    cause: who asked, in words. starving_kind: the kind that lacked bytes.
    """

    cause: str
    starving_kind: str


class Step(NamedTuple):
    """One node that a match walked over: its tokens, and which components had their piece there."""

    node: UnifiedTreeNode
    num_tokens: int
    live: tuple[bool, ...]


class Walk(NamedTuple):
    """What a match saw.

    unpinned_tokens: of the tokens of all steps, those that only the cache holds. rest: the key
    under which the walk found no child, None: none asked.
    """

    prompt_tokens: int
    hit_tokens: int
    image_tokens: int
    unpinned_tokens: int
    steps: tuple[Step, ...]
    rest: Any


class Passed(NamedTuple):
    """What is kept of a :class:`Step`. ``causes``: per component, who took its piece, if known."""

    num_tokens: int
    live: tuple[bool, ...]
    causes: tuple[Eviction | None, ...]


class Start(NamedTuple):
    """A request that started, as much as its report needs; it holds no node of the tree.

    full_only_tokens: what full attention alone had. passed: empty where no other kind had less.
    rest_evicted_by: what took the full slots behind that.
    """

    rid: str
    prompt_tokens: int
    hit_tokens: int
    full_only_tokens: int
    image_tokens: int
    passed: tuple[Passed, ...]
    rest_evicted_by: Eviction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HitReport:
    """Why the hit of one request has its length. Lengths in tokens.

    rid: the digest of the request's id; ids are neither kept nor told to others.
    full_only_tokens: what the hit would have been if full attention were the only kind.
    tokens_by_kind: what each kind alone would have allowed, of that.
    cut_by: the kind that allowed least, None: the hit is all that full attention has.
    missing_token: first position that this kind lacks for a hit of full_only_tokens.
    evicted_by: what took that piece, None: it was never kept (it slid out of a running request,
        or nobody left a state there).
    rest_evicted_by: what took the full slots behind full_only_tokens, None: nobody sent this text
        before, or it was forgotten who took it.
    """

    rid: str
    prompt_tokens: int
    hit_tokens: int
    full_only_tokens: int
    tokens_by_kind: dict[str, int]
    cut_by: str | None
    missing_token: int | None
    evicted_by: Eviction | None
    rest_evicted_by: Eviction | None


def note_piece(node: UnifiedTreeNode, component: ComponentType, eviction: Eviction) -> None:
    """A window or state of ``node`` goes, its full slots stay."""
    node.component_data[component].metadata[_CAUSE] = eviction


def copy_cause(source: UnifiedTreeNode, part: UnifiedTreeNode, component: ComponentType) -> None:
    """``part`` is split off ``source``: its piece went, if it did, for the same reason."""
    cause = source.component_data[component].metadata.get(_CAUSE)
    if cause is not None:
        part.component_data[component].metadata[_CAUSE] = cause


def note_leaf(node: UnifiedTreeNode, page_tokens: int, eviction: Eviction) -> None:
    """``node`` goes whole: its parent remembers why."""
    causes = node.parent.component_data[ComponentType.FULL].metadata.setdefault(
        _CHILDREN, OrderedDict()
    )
    causes[node.key.child_key_at(0, page_tokens)] = eviction
    if len(causes) > _KEPT_CAUSES:
        causes.popitem(last=False)


class HitLog:
    """Reports of the last requests, and sums over all since start.

    ``policies``: component of the tree -> (kind's name, its policy), full aside. ``has_images``:
    hits may be cut by the images of cross layers, too.
    """

    def __init__(
        self, policies: dict[ComponentType, tuple[str, Policy]], *, has_images: bool = False
    ) -> None:
        self._components = tuple(policies)
        self._policies = tuple(policies.values())
        self._starts: OrderedDict[str, Start] = OrderedDict()
        self.requests = self.prompt_tokens = self.hit_tokens = self.full_only_tokens = 0
        #: Tokens that full attention had and another kind cut off, by that kind.
        self.cut_tokens: Counter[str] = Counter({name: 0 for name, _ in self._policies})
        if has_images:
            self.cut_tokens[CROSS] = 0

    def note_start(self, req: Req, root: UnifiedTreeNode) -> Walk | None:
        """``req`` starts to run on what its last match found: that, None for one that was counted
        before it was retracted."""
        walk: Walk | None = getattr(req, WALK, None)
        if walk is None:
            return None
        setattr(req, WALK, None)
        if req.retraction_count:
            return None
        full_only = sum([step.num_tokens for step in walk.steps])
        is_cut = walk.hit_tokens < full_only
        passed = tuple(self._passed(step) for step in walk.steps) if is_cut else ()
        last = walk.steps[-1].node if walk.steps else root
        gone = last.component_data[ComponentType.FULL].metadata.get(_CHILDREN)
        start = Start(
            digest_of(req),
            walk.prompt_tokens,
            walk.hit_tokens,
            full_only,
            walk.image_tokens,
            passed,
            gone.get(walk.rest) if gone else None,
        )
        self._starts[start.rid] = start
        if len(self._starts) > KEPT_REPORTS:
            self._starts.popitem(last=False)
        self.requests += 1
        self.prompt_tokens += start.prompt_tokens
        self.hit_tokens += start.hit_tokens
        self.full_only_tokens += full_only
        if passed:
            self.cut_tokens[self._cut_by(start)] += full_only - start.hit_tokens
        return walk

    def _passed(self, step: Step) -> Passed:
        """A missing piece is named with its cause as it is now: once back, it can go again."""
        causes = (
            None if is_live else step.node.component_data[component].metadata.get(_CAUSE)
            for component, is_live in zip(self._components, step.live, strict=True)
        )
        return Passed(step.num_tokens, step.live, tuple(causes))

    def sums(self) -> dict[str, Any]:
        """JSON-ready: what all requests since start add up to."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "hit_tokens": self.hit_tokens,
            "full_only_tokens": self.full_only_tokens,
            "cut_tokens": dict(self.cut_tokens),
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: sums, and reports by the digests of requests' ids, oldest first."""
        return {**self.sums(), "reports": {rid: asdict(self.report(rid)) for rid in self._starts}}

    def report(self, rid: str) -> HitReport:
        """Why the hit of the request with the digest ``rid``, one of the last, has its length.

        Raises:
            KeyError: it did not start, or too many others did since.
        """
        start = self._starts[rid]
        by_kind = self._tokens_by_kind(start)
        cut_by = missing = evicted_by = None
        if start.passed:
            cut_by = self._cut_by(start)
            if cut_by == CROSS:
                missing, evicted_by = start.full_only_tokens, start.rest_evicted_by
            else:
                index = [name for name, _ in self._policies].index(cut_by)
                policy = self._policies[index][1]
                missing, evicted_by = _first_missing(
                    policy, start.passed, index, start.full_only_tokens
                )
        return HitReport(
            rid=rid,
            prompt_tokens=start.prompt_tokens,
            hit_tokens=start.hit_tokens,
            full_only_tokens=start.full_only_tokens,
            tokens_by_kind=by_kind,
            cut_by=cut_by,
            missing_token=missing,
            evicted_by=evicted_by,
            rest_evicted_by=start.rest_evicted_by,
        )

    def _tokens_by_kind(self, start: Start) -> dict[str, int]:
        """What each kind but the full one alone would have allowed."""
        full_only = start.full_only_tokens
        by_kind = {}
        for index, (name, policy) in enumerate(self._policies):
            # A hit of everything that full attention has is a hit for every kind.
            allowed = _allowed(policy, start.passed, index) if start.passed else full_only
            by_kind[name] = allowed
        if start.image_tokens:  # all or none, and they come first
            by_kind[CROSS] = full_only if full_only >= start.image_tokens else 0
        return by_kind

    def _cut_by(self, start: Start) -> str:
        """The kind that allowed least. Nearly always there is only one that can have cut."""
        if len(self.cut_tokens) == 1:
            return next(iter(self.cut_tokens))
        by_kind = self._tokens_by_kind(start)
        return min(by_kind, key=lambda name: by_kind[name])


def _live_of(policy: Policy, step: Passed, index: int) -> LiveSlots:
    """Which positions of the node have their slot. A state belongs to a node's last token."""
    live = LiveSlots()
    if isinstance(policy, State):
        live.extend(step.num_tokens - 1, live=False)
        live.extend(1, live=step.live[index])
    else:
        live.extend(step.num_tokens, live=step.live[index])
    return live


def _allowed(policy: Policy, steps: Sequence[Passed], index: int) -> int:
    """The longest prefix that ends with a node and is a hit for this kind alone."""
    live, best = LiveSlots(), 0
    for step in steps:
        live.append(_live_of(policy, step, index))
        if policy.is_hit(live.num_tokens, live):
            best = live.num_tokens
    return best


def _first_missing(
    policy: Policy, steps: Sequence[Passed], index: int, prefix_tokens: int
) -> tuple[int | None, Eviction | None]:
    """First position that a hit of ``prefix_tokens`` needs and has not, and who took it."""
    begin = 0
    for step in steps:
        end = begin + step.num_tokens
        live = _live_of(policy, step, index)
        for part in policy.needed(prefix_tokens):
            here = range(max(part.start, begin), min(part.stop, end))
            if here and not live.cover([range(here.start - begin, here.stop - begin)]):
                return here.start, step.causes[index]
        begin = end
    return None, None
