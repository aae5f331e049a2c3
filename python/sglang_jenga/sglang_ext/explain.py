# SPDX-License-Identifier: Apache-2.0
"""Why a hit was as long as it was: which kind cut it, at which token, and what took the piece.

Three moments leave what is needed, none does work of its own size:

    a match     the nodes on the way and which of their pieces are there, kept on the request
    an eviction its cause: on the node that lost a piece, on the parent of a node that went whole
    a start     the two are put together, once per request: :class:`HitReport`

Reports of the last requests and sums since start are in ``/server_info``; ``sglang-jenga explain``
reads them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node that a match walked over: its tokens, and which components had their piece there."""

    node: UnifiedTreeNode
    num_tokens: int
    live: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What a match saw. ``rest``: the key under which the walk found no child, None: none asked."""

    prompt_tokens: int
    hit_tokens: int
    image_tokens: int
    steps: tuple[Step, ...]
    rest: Any


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
        self._policies = policies
        self._reports: OrderedDict[str, HitReport] = OrderedDict()
        self.requests = self.prompt_tokens = self.hit_tokens = self.full_only_tokens = 0
        #: Tokens that full attention had and another kind cut off, by that kind.
        self.cut_tokens: Counter[str] = Counter({name: 0 for name, _ in policies.values()})
        if has_images:
            self.cut_tokens[CROSS] = 0

    def note_start(self, req: Req, root: UnifiedTreeNode) -> None:
        """``req`` starts to run on what its last match found. Retracted ones were counted."""
        walk: Walk | None = getattr(req, WALK, None)
        if walk is None:
            return
        setattr(req, WALK, None)
        if req.retraction_count:
            return
        report = self._report(digest_of(req), walk, root)
        self._reports[report.rid] = report
        if len(self._reports) > KEPT_REPORTS:
            self._reports.popitem(last=False)
        self.requests += 1
        self.prompt_tokens += report.prompt_tokens
        self.hit_tokens += report.hit_tokens
        self.full_only_tokens += report.full_only_tokens
        if report.cut_by is not None:
            self.cut_tokens[report.cut_by] += report.full_only_tokens - report.hit_tokens

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
        reports = {rid: asdict(report) for rid, report in self._reports.items()}
        return {**self.sums(), "reports": reports}

    def _kinds(self) -> Iterator[tuple[str, tuple[int, ComponentType, Policy]]]:
        """Name -> its place in :attr:`Step.live`, its component and its policy."""
        for index, (component, (name, policy)) in enumerate(self._policies.items()):
            yield name, (index, component, policy)

    def _report(self, rid: str, walk: Walk, root: UnifiedTreeNode) -> HitReport:
        full_only = sum(step.num_tokens for step in walk.steps)
        last = walk.steps[-1].node if walk.steps else root
        causes = last.component_data[ComponentType.FULL].metadata.get(_CHILDREN, {})
        by_kind = {name: _allowed(policy, walk.steps, i) for name, (i, _, policy) in self._kinds()}
        if walk.image_tokens:  # all or none, and they come first
            by_kind[CROSS] = full_only if full_only >= walk.image_tokens else 0
        cut_by = missing = evicted_by = None
        if walk.hit_tokens < full_only:
            cut_by = min(by_kind, key=lambda name: by_kind[name])
            if cut_by == CROSS:
                missing, evicted_by = full_only, causes.get(walk.rest)
            else:
                index, component, policy = dict(self._kinds())[cut_by]
                missing, node = _first_missing(policy, walk.steps, index, full_only)
                if node is not None:
                    evicted_by = node.component_data[component].metadata.get(_CAUSE)
        return HitReport(
            rid=rid,
            prompt_tokens=walk.prompt_tokens,
            hit_tokens=walk.hit_tokens,
            full_only_tokens=full_only,
            tokens_by_kind=by_kind,
            cut_by=cut_by,
            missing_token=missing,
            evicted_by=evicted_by,
            rest_evicted_by=causes.get(walk.rest),
        )


def _live_of(policy: Policy, step: Step, index: int) -> LiveSlots:
    """Which positions of the node have their slot. A state belongs to a node's last token."""
    live = LiveSlots()
    if isinstance(policy, State):
        live.extend(step.num_tokens - 1, live=False)
        live.extend(1, live=step.live[index])
    else:
        live.extend(step.num_tokens, live=step.live[index])
    return live


def _allowed(policy: Policy, steps: tuple[Step, ...], index: int) -> int:
    """The longest prefix that ends with a node and is a hit for this kind alone."""
    live, best = LiveSlots(), 0
    for step in steps:
        live.append(_live_of(policy, step, index))
        if policy.is_hit(live.num_tokens, live):
            best = live.num_tokens
    return best


def _first_missing(
    policy: Policy, steps: tuple[Step, ...], index: int, prefix_tokens: int
) -> tuple[int | None, UnifiedTreeNode | None]:
    """First position that a hit of ``prefix_tokens`` needs and has not, and the node it is in."""
    begin = 0
    for step in steps:
        end = begin + step.num_tokens
        live = _live_of(policy, step, index)
        for part in policy.needed(prefix_tokens):
            here = range(max(part.start, begin), min(part.stop, end))
            if here and not live.cover([range(here.start - begin, here.stop - begin)]):
                return here.start, step.node
        begin = end
    return None, None
