# SPDX-License-Identifier: Apache-2.0
"""A planned arena and a booted one in the same words, and the settings in which both are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.launch import ServerSpec
from server.run import ENDS_ONLY
from server.variants import STATE_GRID_TOKENS, family_flags

ARENA = "48MiB"
_CHUNK = ("--chunked-prefill-size", "128")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSetting:
    """Flags that the command and the server both take. server: those of the server alone."""

    shared: tuple[str, ...] = ()
    server: tuple[str, ...] = ()

    @property
    def plan(self) -> tuple[str, ...]:
        return ("--kv", ARENA, "--dtype", "float32", *_CHUNK, *self.shared)


SETTINGS: Mapping[str, PlanSetting] = {
    "page1": PlanSetting(),
    "page16": PlanSetting(shared=("--page-size", "16")),
    "bf16_kv": PlanSetting(shared=("--kv-cache-dtype", "bf16")),
}


def settings_of(family: str) -> Mapping[str, PlanSetting]:
    """The settings that a family can be served in, with the flags that it always needs."""
    one_page = family == "mllama" or STATE_GRID_TOKENS.get(family) == ENDS_ONLY
    own = family_flags(family)
    return {
        name: PlanSetting(shared=(*setting.shared, *own), server=setting.server)
        for name, setting in SETTINGS.items()
        if not (one_page and name == "page16")
    }


def spec_of(family: str, setting: str, checkpoint: Path) -> ServerSpec:
    """The server of a setting. Its tables are kept small: they are not what is compared."""
    chosen = settings_of(family)[setting]
    flags = ("--jenga-arena-size", ARENA, "--max-running-requests", "16", *_CHUNK)
    return ServerSpec(
        model_path=checkpoint,
        jenga=True,
        flags=(*flags, *chosen.shared, *chosen.server),
        env={"SGLANG_VLM_CACHE_SIZE_MB": "1"},
    )


_OF_ARENA = ("arena_bytes", "large_page_bytes", "longest_request_tokens")
_OF_KIND = ("name", "kind", "layers", "slot_bytes", "slots_per_large_page")


def booted(arena: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides state, from a server's snapshot or a plan's JSON."""
    pages = arena["large_pages_total"] + 1 if "large_pages_total" in arena else None
    return {
        **{name: arena[name] for name in _OF_ARENA},
        "num_large_pages": arena["num_large_pages"] if pages is None else pages,
        "kinds": [
            {
                **{name: kind[name] for name in _OF_KIND},
                "window": kind["span_tokens"] if "span_tokens" in kind else kind.get("window"),
            }
            for kind in arena["kinds"]
        ],
    }


def differences(predicted: Mapping[str, Any], real: Mapping[str, Any]) -> list[str]:
    """Fields that are not equal, with both values."""
    return [
        f"{name}: predicted {predicted[name]}, booted {real[name]}"
        for name in predicted
        if predicted[name] != real[name]
    ]
