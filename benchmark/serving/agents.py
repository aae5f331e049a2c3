# SPDX-License-Identifier: Apache-2.0
"""A closed loop of agents: each sends its whole history again with every turn.

An agent has a system prompt that others share, appends what a tool returned to the history, and
waits for the answer before its next turn. So every turn could hit all of the one before.
"""

from __future__ import annotations

import json
import random
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

#: Ids below are special tokens of the tiny tokenizer.
_FIRST_ID, _VOCABULARY = 5, 1024
_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """``prompts``: different system prompts. ``at_once``: agents that work at the same time."""

    agents: int
    at_once: int
    prompts: int
    system_tokens: int
    turns: int
    turn_tokens: int
    output_tokens: int


def run(url: str, work: Agents, seed: int) -> dict[str, float]:
    """Figures under the names that ``bench_serving`` gives them. Greedy, so repeatable."""
    begin = time.monotonic()
    with ThreadPoolExecutor(work.at_once) as pool:
        first_tokens = list(pool.map(lambda i: _agent(url, work, seed, i), range(work.agents)))
    duration = time.monotonic() - begin
    seconds = [s for agent in first_tokens for s in agent]
    return {
        "duration": duration,
        "completed": len(seconds),
        "output_throughput": len(seconds) * work.output_tokens / duration,
        "median_ttft_ms": 1000 * statistics.median(seconds),
    }


def _agent(url: str, work: Agents, seed: int, index: int) -> list[float]:
    """Seconds to the first token of each turn."""
    system = random.Random(f"{seed}-{index % work.prompts}")
    own = random.Random(f"{seed}-agent-{index}")
    history = _words(system, work.system_tokens)
    waited = []
    for _ in range(work.turns):
        history += _words(own, work.turn_tokens)
        seconds, answer = _ask(url, history, work.output_tokens)
        waited.append(seconds)
        history += answer
    return waited


def _words(rng: random.Random, number: int) -> list[int]:
    return [rng.randrange(_FIRST_ID, _VOCABULARY) for _ in range(number)]


def _ask(url: str, ids: list[int], output_tokens: int) -> tuple[float, list[int]]:
    body = {
        "input_ids": ids,
        "stream": True,
        "sampling_params": {
            "temperature": 0.0,
            "max_new_tokens": output_tokens,
            "ignore_eos": True,
        },
    }
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begin = time.monotonic()
    first, last = 0.0, {}
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:
        for line in reply:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                first = first or time.monotonic() - begin
                last = json.loads(line[len(b"data: ") :])
    return first, last["output_ids"]
