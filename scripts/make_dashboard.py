# SPDX-License-Identifier: Apache-2.0
"""``python scripts/make_dashboard.py``: write dashboards/grafana/sglang-jenga.json.

The dashboard is this table of panels; ids and positions follow from their order. A test compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[1] / "dashboards/grafana/sglang-jenga.json"
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Which series: one model, some of its servers. ``%s`` in an expression.
_WHICH = 'model_name=~"$model",instance=~"$instance"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    queries: (expression, legend) pairs; ``[[`` and ``]]`` stand for the braces of a selector that
    also says which servers. unit: Grafana's name of it. most: top of the axis.
    """

    title: str
    text: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    type: str = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False
    most: float | None = None


def _stat(title: str, text: str, expression: str, unit: str = "short") -> Panel:
    return Panel(
        title=title, text=text, queries=[(expression, title)], unit=unit,
        type="stat", width=4, height=4,
    )  # fmt: skip


_RATE = "[$__rate_interval]"
ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Arena",
        (
            _stat("Arena", "Bytes of the arenas.", "sum(sglang:jenga_arena_bytes[[]])", "bytes"),
            _stat(
                "Large page",
                "The unit that kinds exchange.",
                "max(sglang:jenga_large_page_bytes[[]])",
                "bytes",
            ),
            _stat(
                "Longest request",
                "Tokens of prompt and output that an empty arena serves.",
                "min(sglang:jenga_longest_request_tokens[[]])",
            ),
            _stat(
                "Held by requests",
                "Share of the arena that running requests hold. 100 %: nobody else can start.",
                'sum(sglang:jenga_bytes[[state="held"]]) / sum(sglang:jenga_bytes[[]])',
                "percentunit",
            ),
            _stat(
                "Realised running cap",
                "Requests that held memory when one was last refused for want of bytes.",
                "sum(sglang:jenga_realised_running_cap[[]])",
            ),
            _stat(
                "Running limit",
                "Most requests that SGLang would run at once, whatever memory allows.",
                "sum(sglang:jenga_max_running_requests[[]])",
            ),
            Panel(
                title="Bytes by kind and state",
                text="Held by running requests, by sessions between their turns, cached, reserved "
                "for the next tokens of a request, free. Kind none: large pages that nobody owns. "
                "The sum is constant.",
                queries=[
                    ("sum by (kind, state) (sglang:jenga_bytes[[]])", "{{kind}} {{state}}"),
                ],
                unit="bytes",
                stacked=True,
            ),
            Panel(
                title="Large pages by owner",
                text="How the kinds share the arena now.",
                queries=[("sum by (kind) (sglang:jenga_large_pages[[]])", "{{kind}}")],
                stacked=True,
            ),
            Panel(
                title="Waste by reason",
                text="Bytes that store nothing: padding of slots, and slots of partly filled large "
                "pages (reserved for a request's next tokens, or holes).",
                queries=[
                    ("sum by (kind, reason) (sglang:jenga_waste_bytes[[]])", "{{kind}} {{reason}}")
                ],
                unit="bytes",
                stacked=True,
            ),
            Panel(
                title="Waste, share of the arena",
                text="The same, beside the whole.",
                queries=[
                    (
                        "sum by (reason) (sglang:jenga_waste_bytes[[]])"
                        " / ignoring (reason) group_left sum(sglang:jenga_arena_bytes[[]])",
                        "{{reason}}",
                    )
                ],
                unit="percentunit",
                stacked=True,
            ),
        ),
    ),
    (
        "Requests",
        (
            Panel(
                title="Running and waiting",
                text="Requests that wait although fewer than the limit run wait for bytes.",
                queries=[
                    ("sum(sglang:num_running_reqs[[]])", "running"),
                    ("sum(sglang:num_queue_reqs[[]])", "waiting"),
                    ("sum(sglang:jenga_realised_running_cap[[]])", "realised cap"),
                ],
            ),
            Panel(
                title="Refusals by starving kind",
                text="Times per second that admission refused a request for want of bytes.",
                queries=[
                    (f"sum by (kind) (rate(sglang:jenga_waits_total[[]]{_RATE}))", "{{kind}}")
                ],
                stacked=True,
            ),
            Panel(
                title="Requests delayed, by the kind that starved first",
                text="Share of started requests that had been refused at least once.",
                queries=[
                    (
                        f"sum by (kind) (rate(sglang:jenga_delayed_requests_total[[]]{_RATE}))"
                        " / ignoring (kind) group_left"
                        f" sum(rate(sglang:jenga_started_requests_total[[]]{_RATE}))",
                        "{{kind}}",
                    )
                ],
                unit="percentunit",
                stacked=True,
            ),
            Panel(
                title="Retractions by starving kind",
                text="Running requests per second that went back to the queue.",
                queries=[
                    (
                        f"sum by (kind) (rate(sglang:jenga_retracted_requests_total[[]]{_RATE}))",
                        "{{kind}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                title="Sessions that hold memory between their turns",
                text="Their memory gives way when it is needed: turns per second that are computed "
                "anew for it.",
                queries=[
                    ("sum(sglang:jenga_idle_sessions[[]])", "idle"),
                    (
                        f"sum(rate(sglang:jenga_evicted_sessions_total[[]]{_RATE}))",
                        "gave way, per second",
                    ),
                ],
            ),
        ),
    ),
    (
        "Prefix cache",
        (
            Panel(
                title="Hit rate, and what full attention alone had",
                text="The gap is what other kinds cut off hits.",
                queries=[
                    (
                        f"sum(rate(sglang:jenga_hit_tokens_total[[]]{_RATE}))"
                        f" / sum(rate(sglang:jenga_prompt_tokens_total[[]]{_RATE}))",
                        "hit",
                    ),
                    (
                        f"sum(rate(sglang:jenga_full_only_tokens_total[[]]{_RATE}))"
                        f" / sum(rate(sglang:jenga_prompt_tokens_total[[]]{_RATE}))",
                        "full attention alone",
                    ),
                ],
                unit="percentunit",
                most=1,
            ),
            Panel(
                title="Tokens cut off hits, by kind",
                text="Tokens per second. `sglang-jenga explain` says why, request by request.",
                queries=[
                    (f"sum by (kind) (rate(sglang:jenga_cut_tokens_total[[]]{_RATE}))", "{{kind}}")
                ],
                stacked=True,
            ),
            Panel(
                title="Evicted slots by kind",
                text="Slots per second: a token of text, a token of an image, or a state.",
                queries=[
                    (
                        f"sum by (kind) (rate(sglang:jenga_evicted_slots_total[[]]{_RATE}))",
                        "{{kind}}",
                    )
                ],
            ),
            Panel(
                title="Embeddings of images",
                text="Encoded anew, or reused from the arena. Empty without a vision kind.",
                queries=[
                    (
                        f"sum by (result) (rate(sglang:jenga_embeddings_total[[]]{_RATE}))",
                        "{{result}}",
                    )
                ],
                stacked=True,
            ),
        ),
    ),
    (
        "SGLang's own view",
        (
            Panel(
                title="Usage",
                text="On the arena a usage is what requests hold of a kind, as a share of the "
                "arena. token_usage is the sum over kinds.",
                queries=[
                    ("max(sglang:token_usage[[]])", "token_usage"),
                    ("max(sglang:full_token_usage[[]])", "full"),
                    ("max(sglang:swa_token_usage[[]])", "window"),
                    ("max(sglang:mamba_usage[[]])", "state"),
                ],
                unit="percentunit",
                most=1,
            ),
            Panel(
                title="Throughput",
                text="Generated tokens per second.",
                queries=[("sum(sglang:gen_throughput[[]])", "generated")],
            ),
        ),
    ),
)


def _expression(text: str) -> str:
    return text.replace("[[]]", "{" + _WHICH + "}").replace("[[", "{" + _WHICH + ",").replace(
        "]]", "}"
    )  # fmt: skip


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    custom = {"fillOpacity": 40 if panel.stacked else 10, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.type == "timeseries":
        defaults["custom"] = custom
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _DATASOURCE,
                "expr": _expression(expression),
                "legendFormat": legend,
            }
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        position = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "gridPos": position,
             "collapsed": False, "panels": []}
        )  # fmt: skip
        y += 1
        x = line = 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, line = 0, y + line, 0
            made.append(_panel(panel, len(made) + 1, x, y))
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return made


def _variable(name: str, label: str, values_of: str) -> dict[str, Any]:
    query = f"label_values({values_of})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    source = {"name": "datasource", "label": "Data source", "type": "datasource",
              "query": "prometheus", "refresh": 1}  # fmt: skip
    model = _variable("model", "Model", "sglang:jenga_arena_bytes, model_name")
    servers = 'sglang:jenga_arena_bytes{model_name=~"$model"}, instance'
    return {
        "uid": "sglang-jenga",
        "title": "sglang-jenga",
        "description": "One arena for every layer kind: who holds it, what starves, what hits.",
        "tags": ["sglang", "jenga"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [source, model, _variable("instance", "Server", servers)]},
        "panels": _panels(),
    }


def text() -> str:
    """The file, byte for byte."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
