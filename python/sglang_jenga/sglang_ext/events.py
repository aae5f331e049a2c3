# SPDX-License-Identifier: Apache-2.0
"""KV-cache events that are true of the arena's tree: what is published leads to a hit.

SGLang publishes a block when its full-attention slots enter the tree and takes it back when they
leave. That is too much here: a window or a state may be gone while the full slots are still cached,
and then nothing behind the last point that can be hit is of use to anybody. So a block is published
while it lies before a *hit point*, the end of a node at which every kind says yes
(:meth:`~sglang_jenga.sglang_ext.tree.ArenaTreeCore.can_be_hit`):

    root -- A -- B -- C        hit points: A and B. Published: A, B. C is cached, not published.
                  \\- D        D's window goes: BlockRemoved(D). B's goes too: BlockRemoved(B).

Changes are noted while the scheduler works and settled once per step, when SGLang takes the events:
first the blocks that left, children before parents, then those that came, parents before children.
With events off none of this exists (the tree keeps SGLang's own recorder).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.events import KVCacheEventRecorder
from sglang.srt.mem_cache.unified_cache.components import ComponentType

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from sglang_jenga.sglang_ext.tree import ArenaTreeCore


class HitPointRecorder(KVCacheEventRecorder):
    """SGLang's recorder, told of whole nodes only as long as they lead to a hit point.

    What is published is closed towards the root, so a block's parent is always published before it.
    """

    def __init__(self, core: ArenaTreeCore, params: Any) -> None:
        super().__init__(
            enabled=True,
            page_size=core.page_size,
            dynamo_format=params.dynamo_kv_event_format,
            lora_names=params.kv_event_lora_names,
        )
        self._core = core
        self._forget()

    def _forget(self) -> None:
        #: Nodes whose blocks subscribers know.
        self.published: set[UnifiedTreeNode] = set()
        self._hit_points: set[UnifiedTreeNode] = set()
        #: Nodes to look at: new ones, and those that lost a child.
        self._touched: set[UnifiedTreeNode] = set()
        #: Nodes whose window or state came or went: what lies behind them is looked at too.
        self._changed: set[UnifiedTreeNode] = set()
        #: The session that brought a new node, for the event.
        self._sessions: dict[UnifiedTreeNode, str | None] = {}

    # ---- what the tree reports -------------------------------------------------------------

    def record_store(
        self, node: UnifiedTreeNode, medium: Any = None, *, session_id: str | None = None
    ) -> None:
        """``node`` is new."""
        self._touched.add(node)
        self._sessions[node] = session_id

    def record_remove(self, node: UnifiedTreeNode, medium: Any = None) -> None:
        """``node``, a leaf, goes whole."""
        for known in (self._touched, self._changed, self._hit_points):
            known.discard(node)
        self._sessions.pop(node, None)
        if node in self.published:
            self.published.discard(node)
            self._take_back(node)
        self._touched.add(node.parent)

    def piece_changed(self, node: UnifiedTreeNode) -> None:
        """A window or state of ``node`` came or went."""
        self._changed.add(node)

    def split(self, front: UnifiedTreeNode, rest: UnifiedTreeNode) -> None:
        """``front`` was cut off ``rest`` and is its parent now."""
        self._touched.add(front)
        for known in (self.published, self._changed):
            if rest in known:
                known.add(front)
        if rest in self._sessions:
            self._sessions[front] = self._sessions[rest]

    def record_all_cleared(self) -> None:
        self._forget()
        super().record_all_cleared()

    # ---- what subscribers are told ---------------------------------------------------------

    def take(self) -> list[Any]:
        """All events since the last call, the tree as it is now included."""
        if self._touched or self._changed:
            self._settle()
        return super().take()

    def _settle(self) -> None:
        for node in self._to_check():
            if self._core.can_be_hit(node):
                self._hit_points.add(node)
            else:
                self._hit_points.discard(node)
            self._touched.add(node)
        gone, come = self._flip()
        for node in reversed(_from_the_root(gone)):
            self._take_back(node)
        for node in _from_the_root(come):
            self._publish(node)
        self._touched.clear()
        self._changed.clear()
        self._sessions.clear()

    def _publish(self, node: UnifiedTreeNode) -> None:
        super().record_store(node, session_id=self._sessions.get(node))

    def _take_back(self, node: UnifiedTreeNode) -> None:
        super().record_remove(node)

    def _to_check(self) -> set[UnifiedTreeNode]:
        """Nodes whose end may have become a hit point, or ceased to be one."""
        alive = {node for node in self._touched if self._core.is_in_tree(node)}
        for node in self._changed:
            if self._core.is_in_tree(node):
                alive.update(self._depending_on(node))
        self._touched.clear()
        return alive

    def _depending_on(self, node: UnifiedTreeNode) -> Iterator[UnifiedTreeNode]:
        """``node``, and all behind it for which a hit needs a piece of it."""
        window = self._core.components_by_type.get(ComponentType.SWA)
        if window is None:
            yield node
            return
        end = node.end_tokens
        in_head = end - len(node.key) < window.policy.head_tokens
        left = [(node, end)]
        while left:
            below, tokens = left.pop()
            yield below
            for child in below.children.values():
                until = tokens + len(child.key)
                if in_head or window.policy.tail_start(until) < end:
                    left.append((child, until))

    def _flip(self) -> tuple[set[UnifiedTreeNode], set[UnifiedTreeNode]]:
        """Bring ``published`` up to date, from the looked-at nodes towards the root.

        Returns the nodes that left it and those that came.
        """
        root, before = self._core.root_node, set[Any]()
        flipped = set[Any]()
        for node in self._touched:
            while node is not root:
                leads_to_a_hit = node in self._hit_points or any(
                    child in self.published for child in node.children.values()
                )
                if leads_to_a_hit == (node in self.published):
                    break
                if node not in flipped:
                    flipped.add(node)
                    if not leads_to_a_hit:
                        before.add(node)
                (self.published.add if leads_to_a_hit else self.published.discard)(node)
                node = node.parent
        gone = {node for node in before if node not in self.published}
        come = {node for node in flipped - before if node in self.published}
        return gone, come


def _from_the_root(nodes: Iterable[UnifiedTreeNode]) -> list[UnifiedTreeNode]:
    """``nodes``, each behind those that lead to it; a chain of them stays together."""
    left, ordered = set(nodes), list[Any]()
    while left:
        node, chain = next(iter(left)), list[Any]()
        while node in left:
            left.discard(node)
            chain.append(node)
            node = node.parent
        ordered += reversed(chain)
    return ordered
