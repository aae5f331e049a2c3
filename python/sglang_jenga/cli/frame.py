# SPDX-License-Identifier: Apache-2.0
"""One frame of ``sglang-jenga top``, from views of the schedulers. Pure: no clock, no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_jenga.cli.samples import KindView, SchedulerView
from sglang_jenga.cli.spans import UNICODE, Glyphs, Line, Span, bar, clipped, line, sparkline
from sglang_jenga.core.printable import printable
from sglang_jenga.core.sizes import count, format_bytes

_LABEL = 12
_TREND = 16
_COUNTS = 20
_UNKNOWN = "-"
_NARROWEST_BAR, _WIDEST_BAR = 10, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a frame is drawn on. ``rows`` None: as many as it takes."""

    columns: int
    rows: int | None = None
    glyphs: Glyphs = UNICODE

    @property
    def bar_columns(self) -> int:
        left = self.columns - _LABEL - _COUNTS - _TREND - 4
        return max(_NARROWEST_BAR, min(_WIDEST_BAR, left))


def draw(
    frame: Frame, views: Sequence[SchedulerView], *, url: str, clock: str, trouble: str | None
) -> list[Line]:
    """The lines. ``trouble``: why the numbers are not of now, in words."""
    model = views[0].model if views else ""
    title = line(Span("sglang-jenga top", "title"), f"  {url}  {model}")
    end = f"{clock}  q quits" if frame.rows else clock
    space = frame.columns - sum(len(span.text) for span in title) - len(end)
    lines = [(*title, Span(" " * space + end, "faint")) if space > 1 else title]
    if trouble is not None:
        lines.append(line(Span(f"! {trouble}", "alarm")))
    for view in views:
        lines += [line(), *_scheduler(frame, view, named=len(views) > 1)]
    if views:
        lines += [line(), _legend(frame.glyphs, sessions=any(map(_sessions, views)))]
    lines = [clipped(spans, frame.columns, frame.glyphs) for spans in lines]
    if frame.rows is not None and len(lines) > frame.rows:
        hidden = len(lines) - frame.rows + 1
        note = line(
            Span(f"{frame.glyphs.more} {hidden} more lines: make the window higher", "faint")
        )
        lines = [*lines[: max(0, frame.rows - 1)], clipped(note, frame.columns, frame.glyphs)]
    return lines


def _scheduler(frame: Frame, view: SchedulerView, *, named: bool) -> list[Line]:
    who = f"data parallel rank {view.dp_rank}: " if named else ""
    lines = [
        line(
            Span(who, "title"),
            f"arena {format_bytes(view.arena_bytes)} = {view.large_pages_total:,} large pages of "
            f"{format_bytes(view.large_page_bytes)}",
        )
    ]
    width = frame.bar_columns
    scale = "0 %".ljust(width - 5) + "100 %"
    lines.append(
        line(
            Span(
                f"{'':<{_LABEL}}{scale}  {'large pages':>{_COUNTS - 9}} {'share':>8}  trend",
                "faint",
            )
        )
    )
    lines += [_kind(frame, view, kind) for kind in view.kinds]
    free = view.large_pages_free
    lines.append(
        line(
            f"{'free':<{_LABEL}}",
            *bar([(free, frame.glyphs.free, "free")], view.large_pages_total, width),
            _counts(free, view.large_pages_total),
            Span(sparkline(view.free_trend, _TREND, frame.glyphs, top=1.0), "faint"),
        )
    )
    return [*lines, line(), *_numbers(frame, view)]


def _kind(frame: Frame, view: SchedulerView, kind: KindView) -> Line:
    glyphs = frame.glyphs
    parts = [
        (float(kind.held_bytes), glyphs.held, "held"),
        (float(kind.session_bytes), glyphs.sessions, "sessions"),
        (float(kind.cached_bytes), glyphs.cached, "cached"),
        (float(kind.reserved_bytes), glyphs.reserved, "reserved"),
        (float(kind.hole_bytes), glyphs.hole, "hole"),
    ]
    total = view.large_pages_total * view.large_page_bytes
    name = printable(kind.name)
    name = name if len(name) < _LABEL else name[: _LABEL - 2] + glyphs.more
    return line(
        f"{name:<{_LABEL}}",
        *bar(parts, total, frame.bar_columns),
        _counts(kind.large_pages, view.large_pages_total),
        Span(sparkline(kind.trend, _TREND, glyphs, top=1.0), "faint"),
    )


def _counts(pages: int, total: int) -> str:
    share = f"{100 * pages / total:.1f} %" if total else _UNKNOWN
    return f"  {pages:>{_COUNTS - 9},} {share:>8}  "


def _legend(glyphs: Glyphs, *, sessions: bool) -> Line:
    between = ((glyphs.sessions, "sessions", "by idle sessions"),) if sessions else ()
    entries = (
        (glyphs.held, "held", "held by running requests"),
        *between,
        (glyphs.cached, "cached", "cached"),
        (glyphs.reserved, "reserved", "reserved"),
        (glyphs.hole, "hole", "holes"),
        (glyphs.free, "free", "free large pages"),
    )
    spans: list[str | Span] = [" " * _LABEL]
    for glyph, style, meaning in entries:
        spans += [Span(glyph, style), f" {meaning}  "]
    return line(*spans)


def _numbers(frame: Frame, view: SchedulerView) -> list[Line]:
    def row(label: str, *parts: str | Span) -> Line:
        return line(Span(f"{label:<{_LABEL}}", "faint"), *parts)

    def trend(values: Sequence[float], top: float = 0.0) -> Span:
        return Span(sparkline(values, _TREND, frame.glyphs, top=top), "faint")

    waiting = view.waiting_requests
    rows = [
        row(
            "running",
            f"{_number(view.running_requests)} of at most {_number(view.max_running_requests)}"
            f"{_memory_allows(view.realised_running_cap)}, "
            f"retracted {_number(view.retractions)} since start ",
            trend(view.running_trend),
        ),
        row(
            "waiting",
            Span(_number(waiting), "alarm" if waiting else ""),
            " ",
            trend(view.waiting_trend),
        ),
        *([row("sessions", _sessions(view))] if _sessions(view) else []),
        row("starving", *_starving(view.kinds)),
        row("generates", f"{_number(view.generated_tokens_per_second)} tokens/s"),
        row(
            "hit rate",
            f"{_percent(view.hit_rate)} of {view.prompt_tokens:,} prompt tokens, since the last "
            f"sample {_percent(view.hit_rate_since_last)} ",
            trend(view.hit_trend, 1.0),
        ),
        row(
            "",
            f"full attention alone had {_percent(view.full_only_hit_rate)}; cut by ",
            _by_kind([(k.name, _share(k.cut_tokens, view.prompt_tokens)) for k in view.kinds]),
        ),
        row(
            "evicted",
            _by_kind([(k.name, _eviction(k)) for k in view.kinds]),
        ),
        row(
            "waste",
            f"padding {_bytes(view.padding_bytes)}, partly used pages "
            f"{_bytes(view.partial_page_bytes)}",
        ),
    ]
    return rows


def _sessions(view: SchedulerView) -> str:
    """Nothing where there never was one."""
    if not view.idle_sessions and not view.evicted_sessions:
        return ""
    return (
        f"{_number(view.idle_sessions)} hold memory between their turns, "
        f"{_number(view.evicted_sessions)} gave it up since start"
    )


def _memory_allows(requests: int | None) -> str:
    return f" ({requests:,} when memory last ran out)" if requests else ""


def _starving(kinds: Sequence[KindView]) -> list[str | Span]:
    """Kinds for which requests wait now come first to the eye."""
    out: list[str | Span] = []
    for kind in kinds:
        new = f" (+{kind.waits_since_last:,})" if kind.waits_since_last else ""
        if kind.waits is not None:
            out += ["; "] if out else []
            delayed = kind.delayed_requests
            who = "" if delayed is None else f"{count(delayed, 'request')} delayed, "
            text = f"{kind.name} {who}{kind.waits:,} refusals{new}"
            out.append(Span(text, "alarm" if new else ""))
    return out or [_UNKNOWN]


def _by_kind(parts: Sequence[tuple[str, str | None]]) -> str:
    known = [f"{name} {text}" for name, text in parts if text is not None]
    return ", ".join(known) or _UNKNOWN


def _eviction(kind: KindView) -> str | None:
    if kind.evicted_slots is None:
        return None
    return f"{kind.evicted_slots:,} slots ({_number(kind.evicted_slots_per_second)}/s)"


def _share(tokens: int | None, prompt_tokens: int) -> str | None:
    if tokens is None:
        return None
    return f"{100 * tokens / prompt_tokens:.1f} %" if prompt_tokens else _UNKNOWN


def _number(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.1f} %"


def _bytes(value: int | None) -> str:
    return _UNKNOWN if value is None else format_bytes(value)
