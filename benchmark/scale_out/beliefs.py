# SPDX-License-Identifier: Apache-2.0
"""What would a router believe of each prompt, by these events and by SGLang's own, and what hit?

    python benchmark/scale_out/beliefs.py --judge DIR --model gpt-oss-20b --stream mooncake_chat

One run of ``capacity/drive_jenga.py`` (same options) whose tree records events, settled once per
step as a server does. For every request that starts, three lengths are added up:

* hit: what it got
* believed: its longest chain of published blocks
* full only: its longest chain of cached full slots, which is what SGLang's recorder publishes
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "capacity")]

from provenance import commit  # noqa: E402
from sglang.srt.mem_cache.events import KvEventLoraNames  # noqa: E402

import drive_jenga  # noqa: E402
from sglang_jenga.sglang_ext.events import HitPointRecorder  # noqa: E402
from sglang_jenga.sglang_ext.explain import WALK  # noqa: E402


class Listener(HitPointRecorder):
    """Knows what is published; hashes nothing, since nobody receives it."""

    def _publish(self, node: Any) -> None:
        pass

    def _take_back(self, node: Any) -> None:
        pass


SUMS: Counter[str] = Counter()


class HeardPeer(drive_jenga.JengaPeer):
    """The judge's jenga server with a router that hears of every change."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        core = self.tree.tree_core
        names = SimpleNamespace(
            dynamo_kv_event_format=False, kv_event_lora_names=KvEventLoraNames()
        )
        core.kv_events = core.events = self.listener = Listener(core, names)
        self._note_start = self.tree.hits.note_start
        self.tree.hits.note_start = self.note_start

    def begin_step(self) -> None:
        self.listener.take()
        super().begin_step()

    def note_start(self, req: Any, root: Any) -> Any:
        walk = getattr(req, WALK, None)
        if walk is not None and not req.retraction_count:
            believed = 0
            for step in walk.steps:
                if step.node not in self.listener.published:
                    break
                believed += step.num_tokens
            full_only = sum(step.num_tokens for step in walk.steps)
            SUMS.update(
                requests=1,
                prompt_tokens=walk.prompt_tokens,
                hit_tokens=walk.hit_tokens,
                believed_tokens=believed,
                full_only_tokens=full_only,
                believed_rightly=int(believed == walk.hit_tokens),
                full_only_rightly=int(full_only == walk.hit_tokens),
            )
        return self._note_start(req, root)


def main() -> None:
    drive_jenga.JengaPeer = HeardPeer
    record = drive_jenga.drive()
    stream = record["stream"]
    options = {"model": record["model"], "stream": stream["stream"], "prompts": stream["n"]}
    row = {"commit": commit(), **options, **SUMS}
    with (HERE / "results" / "beliefs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
