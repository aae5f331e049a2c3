# SPDX-License-Identifier: Apache-2.0
"""Token ids for the prompts of a trace that only says which of them begin alike.

Ids stand for themselves: equal ids mean equal text. A block's id gives all of its tokens. Finer
sharing than whole blocks is put back where the trace implies it: a prompt that holds every whole
block (two at least) of an earlier one and is longer is the next turn of that conversation. It then
begins with all of that prompt, and with its answer, too, if it is long enough for both; and it is
not sent before that answer is there. Where a trace says which requests are turns of one
conversation, each begins with the whole of the one before.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_jenga.simulate.traces import Trace, TraceRequest

Tokens = npt.NDArray[np.int64]
#: Ids of answers begin here, above those of any prompt.
_FIRST_ANSWER = 1 << 40
_TWO_BLOCKS = 2


@dataclass(slots=True)
class Contents:
    """Text of every request of a trace.

    prompts: token ids by request, None where a prompt shares nothing and is made when it is asked
        for. turn_of: the request that each one continues, -1 for none.
    """

    prompts: list[Tokens | None]
    turn_of: list[int]
    first_ids: list[int]
    first_answer_ids: list[int]
    lengths: list[int]

    def prompt(self, index: int) -> Tokens:
        """Token ids of a prompt."""
        known = self.prompts[index]
        if known is not None:
            return known
        first = self.first_ids[index]
        return np.arange(first, first + self.lengths[index], dtype=np.int64)

    def answer(self, index: int, at: int) -> int:
        """Id of the ``at``-th token (from 0) of an answer."""
        return self.first_answer_ids[index] + at

    def forget(self, index: int) -> None:
        """The request has finished: nobody asks for its prompt again."""
        self.prompts[index] = None


def contents_of(trace: Trace) -> Contents:
    """The text of a trace, made from its blocks."""
    lengths = [request.prompt_tokens for request in trace.requests]
    contents = Contents(
        prompts=[None] * len(lengths),
        turn_of=[-1] * len(lengths),
        first_ids=_starts(lengths, 1),
        first_answer_ids=_starts([r.output_tokens for r in trace.requests], _FIRST_ANSWER),
        lengths=lengths,
    )
    if trace.shares_text:
        writer = _Writer(trace, contents)
        for index in range(len(lengths)):
            writer.write(index)
    return contents


def as_array(tokens: Tokens) -> array[int]:
    """Ids as SGLang keeps them on a request."""
    out = array("q")
    out.frombytes(tokens.tobytes())
    return out


def _starts(lengths: list[int], first: int) -> list[int]:
    starts = []
    for length in lengths:
        starts.append(first)
        first += length
    return starts


class _Writer:
    """Writes prompts in the order of the trace; what it wrote decides what comes."""

    def __init__(self, trace: Trace, contents: Contents) -> None:
        self._trace = trace
        self._contents = contents
        self._size = trace.block_tokens
        #: What is known of each block: its first tokens.
        self._blocks: dict[int, Tokens] = {}
        #: The last prompt of so many whole blocks that ends with this one.
        self._ends: dict[tuple[int, int], int] = {}
        #: The last turn of each conversation.
        self._turns: dict[int, int] = {}

    def write(self, index: int) -> None:
        request = self._trace.requests[index]
        size, length = self._size, request.prompt_tokens
        tokens = np.empty(length, dtype=np.int64)
        taken = self._begin_as_next_turn(index, request, tokens)
        if not self._size:
            first = self._contents.first_ids[index]
            tokens[taken:] = np.arange(first + taken, first + length)
            self._contents.prompts[index] = tokens
            self._turns[request.conversation] = index
            return
        for at, block in enumerate(request.blocks[: -(-length // size)]):
            start, end = at * size, min((at + 1) * size, length)
            known = self._blocks.get(block)
            if known is not None and len(known) >= end - start:
                tokens[start:end] = known[: end - start]
                continue
            written = max(start, min(taken, end))
            if known is not None and start + len(known) > written:
                tokens[start : start + len(known)] = known
                written = start + len(known)
            first = 1 + block * size
            tokens[written:end] = np.arange(first + written - start, first + end - start)
            self._blocks[block] = tokens[start:end].copy()
        self._contents.prompts[index] = tokens
        whole = length // size
        if whole >= _TWO_BLOCKS:
            self._ends[whole, request.blocks[whole - 1]] = index

    def _begin_as_next_turn(self, index: int, request: TraceRequest, tokens: Tokens) -> int:
        """Copy the conversation so far into ``tokens``; how many that are."""
        before = self._turn_before(request)
        if before is None:
            return 0
        self._contents.turn_of[index] = before
        earlier = self._trace.requests[before]
        taken = earlier.prompt_tokens
        said = self._contents.prompts[before]
        assert said is not None, "turns are filled in order"
        tokens[:taken] = said
        if request.prompt_tokens >= taken + earlier.output_tokens:
            first = self._contents.answer(before, 0)
            end = taken + earlier.output_tokens
            tokens[taken:end] = np.arange(first, first + earlier.output_tokens)
            taken = end
        return taken

    def _turn_before(self, request: TraceRequest) -> int | None:
        earlier = self._trace.requests
        if not self._size:
            return self._turns.get(request.conversation)
        for whole in range(request.prompt_tokens // self._size, _TWO_BLOCKS - 1, -1):
            found = self._ends.get((whole, request.blocks[whole - 1]), -1)
            if found >= 0 and earlier[found].prompt_tokens < request.prompt_tokens:
                return found
        return None
