# SPDX-License-Identifier: Apache-2.0
"""From a model, a trace and some bytes to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

from sglang_jenga.core.errors import ConfigError, JengaError
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import CROSS
from sglang_jenga.core.sizing import SizedArena, size_arena
from sglang_jenga.simulate.engine import Engine, Request
from sglang_jenga.simulate.loop import Loop, Totals
from sglang_jenga.simulate.model import window_of
from sglang_jenga.simulate.report import Report, Setup
from sglang_jenga.simulate.traces import Trace

EngineName = Literal["plain", "server"]


class ReplayError(JengaError):
    """A replay that ended with slots lost: a fault of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server would be started.

    chunk_tokens: what a step computes at most, and so the longest chunk of a prompt.
    context_tokens: longer requests are left out; None: those that no empty arena holds.
    image_tokens: of the one image that every request brings (cross layers only).
    prefix_cache: False is ``--disable-radix-cache``; the plain engine has none.
    """

    kv_bytes: int
    chunk_tokens: int = 8192
    max_running: int = 512
    page_tokens: int = 1
    context_tokens: int | None = None
    image_tokens: int = 0
    prefix_cache: bool = True


def engine_for(trace: Trace, asked: str) -> EngineName:
    """The engine to use: ``plain``, ``server``, or what the trace needs (``auto``).

    Raises:
        ConfigError: the one it takes cannot run here.
    """
    if asked == "plain" or (asked == "auto" and not trace.shares_text):
        return "plain"
    missing = [name for name in ("torch", "sglang") if find_spec(name) is None]
    if missing:
        why = "says which prompts share text" if trace.shares_text else "can be replayed without"
        raise ConfigError(
            f"the server engine runs SGLang's classes, and {' and '.join(missing)} is not "
            f'installed: pip install "sglang-jenga[serve]". The trace {why}; --engine plain '
            "replays its lengths alone"
        )
    return "server"


def replay(
    kinds: Sequence[KindSpec],
    trace: Trace,
    options: Options,
    *,
    engine: EngineName,
    model: str,
    source: str,
    progress: Callable[[Totals, int], None] | None = None,
) -> Report:
    """Replay ``trace`` on one arena.

    model, source: what the report calls the model and the trace. progress: called now and then
    with the totals so far and the number of requests.

    Raises:
        ConfigError: the arena is too small for the model, or for every request.
        Stuck: requests wait that can never run.
        ReplayError: slots were lost.
    """
    if options.image_tokens and CROSS not in [kind.name for kind in kinds]:
        raise ConfigError("image tokens were given, but the model has no layers for images alone")
    sized = size_arena(
        kinds,
        arena_bytes=options.kv_bytes,
        page_tokens=options.page_tokens,
        window=window_of(kinds),
        chunk_tokens=options.chunk_tokens,
    )
    kept, longest = _that_fit(trace, options, sized.longest_request_tokens)
    made, requests = _engine(engine, sized, kept, options, longest)
    loop = Loop(
        made,
        requests,
        token_budget=options.chunk_tokens,
        max_running=options.max_running,
        progress=None if progress is None else lambda totals: progress(totals, len(requests)),
    )
    totals = loop.run()
    hits = made.hits()
    problems = made.problems()
    if problems:
        raise ReplayError("; ".join(problems))
    setup = Setup(
        model=model,
        trace=source,
        trace_format=trace.format,
        engine=engine,
        requests=len(requests),
        too_long=len(trace.requests) - len(requests),
        failed=trace.failed,
        left_out=trace.left_out,
        trace_note=trace.note,
        prompt_tokens=kept.prompt_tokens,
        output_tokens=kept.output_tokens,
        chunk_tokens=options.chunk_tokens,
        max_running=options.max_running,
        page_tokens=options.page_tokens,
        context_tokens=options.context_tokens,
        image_tokens=options.image_tokens,
        prefix_cache=engine == "server" and options.prefix_cache,
    )
    return Report(
        setup=setup,
        plan=sized.plan,
        totals=totals,
        waits=dict(made.waits()),
        delayed=dict(made.delayed_requests()),
        hits=hits,
        timeline=loop.timeline,
    )


def _that_fit(trace: Trace, options: Options, arena_tokens: int) -> tuple[Trace, int]:
    """The trace without what is too long, and the length of the longest that is left."""
    most = arena_tokens
    if options.context_tokens is not None:
        most = min(most, options.context_tokens)
    images = options.image_tokens
    lengths = [r.prompt_tokens + r.output_tokens + images for r in trace.requests]
    kept = tuple(r for r, length in zip(trace.requests, lengths, strict=True) if length <= most)
    if not kept:
        raise ConfigError(
            f"the shortest request has {min(lengths):,} tokens, the longest that can be served "
            f"{most:,}: give more bytes"
        )
    longest = max(length for length in lengths if length <= most)
    return replace(trace, requests=kept), longest


class _Fresh(Sequence[Request]):
    """Requests of a trace, made when they are asked for: a week has millions."""

    def __init__(self, trace: Trace, image_tokens: int) -> None:
        self._trace = trace
        self._image_tokens = image_tokens

    def __len__(self) -> int:
        return len(self._trace.requests)

    def __getitem__(self, index: Any) -> Any:
        request = self._trace.requests[index]
        return Request(index, request.prompt_tokens, request.output_tokens, self._image_tokens)


def _engine(
    name: EngineName,
    sized: SizedArena,
    trace: Trace,
    options: Options,
    longest: int,
) -> tuple[Engine, Sequence[Request]]:
    """An engine, and the requests that it understands."""
    images = options.image_tokens
    if name == "plain":
        from sglang_jenga.simulate.plain import PlainEngine

        plain = PlainEngine(
            sized.plan, demand=sized.demand, max_running=options.max_running, longest_tokens=longest
        )
        return plain, _Fresh(trace, images)
    from sglang_jenga.simulate.contents import contents_of
    from sglang_jenga.simulate.server import ServerEngine
    from sglang_jenga.simulate.server_parts import build

    contents = contents_of(trace)
    requests = [
        Request(index, request.prompt_tokens, request.output_tokens, images, after)
        for index, (request, after) in enumerate(zip(trace.requests, contents.turn_of, strict=True))
    ]
    parts = build(
        sized.plan,
        sized.demand,
        num_rows=options.max_running,
        context_tokens=longest + options.page_tokens + 64,
        disable_cache=not options.prefix_cache,
    )
    return ServerEngine(parts, contents), requests
