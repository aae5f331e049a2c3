# SPDX-License-Identifier: Apache-2.0
"""The page of ``sglang-jenga map``: one HTML file with its style, its script and its snapshots."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from sglang_jenga.cli.samples import History, Sample
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import printable

SCHEMA = 1
_KIND_FIELDS = (
    "name",
    "description",
    "large_pages",
    "held_bytes",
    "cached_bytes",
    "reserved_bytes",
    "hole_bytes",
)
_SCHEDULER_FIELDS = (
    "dp_rank",
    "arena_bytes",
    "large_page_bytes",
    "large_pages_total",
    "large_pages_free",
)


def page_data(url: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the page's script draws.

    Raises:
        ConfigError: the server gives no map, because its sglang-jenga is older than this command;
            or its kinds changed between two samples.
    """
    history = History()
    model = ""
    snapshots: list[dict[str, Any]] = []
    of_first: list[str] | None = None
    for sample in samples:
        schedulers = []
        for scheduler, view in zip(sample.schedulers, history.add(sample), strict=True):
            model = view.model
            large_page_map = scheduler.state["jenga"].get("large_page_map")
            if large_page_map is None:
                raise ConfigError(
                    f"{url} gives no large_page_map in /server_info: install the sglang-jenga of "
                    "this command in the server's environment"
                )
            now = asdict(view)
            kinds = [{name: kind[name] for name in _KIND_FIELDS} for kind in now["kinds"]]
            found = {name: now[name] for name in _SCHEDULER_FIELDS}
            schedulers.append(found | {"kinds": kinds, "map": large_page_map})
            names = [kind["name"] for kind in kinds]
            of_first = names if of_first is None else of_first
            if names != of_first or len(large_page_map["small_pages_per_large_page"]) != len(names):
                raise ConfigError(
                    f"{url} has kinds {', '.join(names)} in snapshot {len(snapshots) + 1} and "
                    f"{', '.join(of_first)} in the first: draw them on pages of their own"
                )
        snapshots.append({"unix_seconds": sample.unix_seconds, "schedulers": schedulers})
    return {"schema": SCHEMA, "url": url, "model": model, "snapshots": snapshots}


def page(data: dict[str, Any]) -> str:
    """The whole page. Nothing in it is loaded from elsewhere; the browser is told to refuse it.

    Names of others are text in it: marks of the template are filled once, not in what fills them.
    """
    folder = files("sglang_jenga.cli") / "page"
    text = json.dumps(data, separators=(",", ":"))
    filled = {
        "@TITLE@": html.escape(printable(f"Arena of {data['model'] or data['url']}")),
        "@STYLE@": (folder / "map.css").read_text(encoding="utf-8"),
        "@SCRIPT@": (folder / "map.js").read_text(encoding="utf-8"),
        # A text with "</script>" in it must not end the element that it stands in.
        "@DATA@": text.replace("<", "\\u003c"),
    }
    template = (folder / "map.html").read_text(encoding="utf-8")
    return re.sub("|".join(filled), lambda mark: filled[mark[0]], template)
