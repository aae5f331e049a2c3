# SPDX-License-Identifier: Apache-2.0
"""A router's side of KV-cache events: the set of cached blocks, rebuilt from what was published.

It decodes SGLang's own wire format and knows nothing of kinds, windows or states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

_DECODER = msgspec.msgpack.Decoder(KVEventBatch)
_TIMEOUT_MILLISECONDS = 20_000


def replay(endpoint: str, first: int = 0) -> list[tuple[int, bytes]]:
    """Batches from number ``first`` on, from a publisher's replay endpoint: (number, payload)."""
    with zmq.Context.instance().socket(zmq.DEALER) as ask:
        ask.setsockopt(zmq.RCVTIMEO, _TIMEOUT_MILLISECONDS)
        ask.setsockopt(zmq.LINGER, 0)
        ask.connect(endpoint)
        ask.send_multipart((b"", first.to_bytes(8, "big")))
        batches: list[tuple[int, bytes]] = []
        while True:
            _, _, number, payload = ask.recv_multipart()
            if number == ZmqEventPublisher.END_SEQ:
                return batches
            batches.append((int.from_bytes(number, "big"), payload))


class Subscriber:
    """Blocks by hash: (hash of the parent, tokens). Complains about events out of order."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        self.cleared = self.stored = self.removed = 0

    def receive(self, payload: bytes) -> None:
        """Apply one batch as it came over the wire."""
        for event in _DECODER.decode(payload).events:
            self._apply(event)
        for parent, _ in self.blocks.values():
            assert parent is None or parent in self.blocks, "a block's parent was taken back"

    def take(self, events: Sequence[Any]) -> None:
        """Apply what a tree gives, through the wire format."""
        self.receive(msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=list(events))))

    def _apply(self, event: Any) -> None:
        if isinstance(event, AllBlocksCleared):
            self.blocks.clear()
            self.cleared += 1
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                assert block in self.blocks, "taken back, but it was not there"
                del self.blocks[block]
                self.removed += 1
        else:
            self._store(event)

    def _store(self, event: BlockStored) -> None:
        parent, size = event.parent_block_hash, event.block_size
        assert len(event.token_ids) == size * len(event.block_hashes)
        for index, block in enumerate(event.block_hashes):
            assert parent is None or parent in self.blocks, "stored before its parent"
            assert block not in self.blocks, "stored twice"
            self.blocks[block] = (parent, tuple(event.token_ids[index * size : (index + 1) * size]))
            parent = block
            self.stored += 1

    def texts(self) -> set[tuple[int, ...]]:
        """The prompts that end with a block, one for each block."""
        return {self._text(block) for block in self.blocks}

    def _text(self, block: int | None) -> tuple[int, ...]:
        parts = []
        while block is not None:
            block, tokens = self.blocks[block]
            parts.append(tokens)
        return tuple(token for tokens in reversed(parts) for token in tokens)

    def longest_texts(self) -> list[tuple[int, ...]]:
        """Those that no other one continues."""
        inner = {parent for parent, _ in self.blocks.values()}
        return [self._text(block) for block in self.blocks if block not in inner]

    def believes(self, prompt: Sequence[int], block_tokens: int) -> int:
        """Tokens of ``prompt`` that a router takes for cached: its longest chain of blocks."""
        known = self.texts()
        length = 0
        while tuple(prompt[: length + block_tokens]) in known:
            length += block_tokens
            if length + block_tokens > len(prompt):
                break
        return length
