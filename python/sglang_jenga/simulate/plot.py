# SPDX-License-Identifier: Apache-2.0
"""Bytes by kind over the steps of a replay, as a picture. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.simulate.report import Report

_SUFFIXES = (".png", ".svg")
#: Held and cached, by kind.
_COLOURS = (
    ("#0a6ebd", "#9ecae8"),
    ("#c4500b", "#f3b98e"),
    ("#2f8f46", "#a6d9b2"),
    ("#7a4fb5", "#cdb9e6"),
)
_PARTIAL, _FREE = "#555555", "#f0f0f0"


def require_plotting(path: Path) -> None:
    """Before a long replay: can this file be drawn?

    Raises:
        ConfigError: it cannot, and why.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"--timeline {path}: the name must end in {' or '.join(_SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise ConfigError(
            'drawing needs matplotlib, which is not installed: pip install "sglang-jenga[plot]"'
        )


def draw(report: Report, path: Path) -> None:
    """Write the picture of ``report`` to ``path``; the same report gives the same SVG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "sglang-jenga", "font.size": 8}):
        figure, (memory, requests) = plt.subplots(
            2, 1, figsize=(8, 4.6), sharex=True, height_ratios=(3, 1)
        )
        _draw_bytes(memory, report)
        _draw_requests(requests, report)
        figure.tight_layout()
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
        plt.close(figure)


def _draw_bytes(axis: Any, report: Report) -> None:
    points = report.timeline.points
    gib = 2.0**30
    layers: list[list[float]] = []
    labels: list[str] = []
    colours: list[str] = []
    for index, kind in enumerate(report.plan.kinds):
        held, cached = _COLOURS[index % len(_COLOURS)]
        for name, colour in (("held", held), ("cached", cached)):
            values = [getattr(point.kinds[index], name) / gib for point in points]
            if any(values):
                layers.append(values)
                labels.append(f"{kind.spec.name}, {name}")
                colours.append(colour)
    layers.append([sum(kind.partial for kind in point.kinds) / gib for point in points])
    labels.append("partly filled pages")
    colours.append(_PARTIAL)
    total = report.plan.arena_bytes / gib
    taken = [sum(column) for column in zip(*layers, strict=True)]
    layers.append([max(0.0, total - used) for used in taken])
    labels.append("free")
    colours.append(_FREE)
    steps = [point.step for point in points]
    axis.stackplot(steps, layers, labels=labels, colors=colours, linewidth=0)
    axis.set(ylabel="GiB", ylim=(0, total), title=f"{report.setup.model}, {report.setup.trace}")
    axis.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_requests(axis: Any, report: Report) -> None:
    points = report.timeline.points
    steps = [point.step for point in points]
    axis.plot(steps, [point.running for point in points], color="#222222", lw=1, label="running")
    axis.plot(steps, [point.waiting for point in points], color="#aaaaaa", lw=1, label="waiting")
    axis.set(xlabel="step", ylabel="requests", yscale="symlog")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
