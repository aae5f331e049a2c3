# SPDX-License-Identifier: Apache-2.0
"""More than one arena: data parallel ranks with events of their own, tensor parallel ranks, and two
servers behind ``sglang-router``, one of which dies under load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from subscriber import Subscriber, replay

from server import prompts
from server.client import Client, Request
from server.launch import ServerSpec, serving
from server.matrix import prepare
from server.variants import jenga_spec, variant
from sglang_jenga.core.request_digest import request_digest
from sglang_jenga.demo import scale
from sglang_jenga.demo.router import default_python, router_version
from sglang_jenga.demo.server import ServerError, free_port

TIGHT_TOKENS = "700"


def router_python(root: Path) -> str:
    """An interpreter with the router, or a skip that says what was tried."""
    python = default_python(root)
    try:
        router_version(python)
    except ServerError as error:
        pytest.skip(f"not run: {error}")
    return python


def events_flag(ranks: int) -> tuple[str, dict[str, Any]]:
    """A value of ``--kv-events-config``, ports free for each rank."""
    while True:
        first = free_port()
        if first + 2 * ranks < 65_536:
            break
    config = {
        "publisher": "zmq",
        "endpoint": f"tcp://*:{first}",
        "replay_endpoint": f"tcp://*:{first + ranks}",
    }
    return json.dumps(config), config


class Router:
    """What a router knows of one rank: it asks the replay endpoint for what it has missed."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.cache = Subscriber()
        self._next = 0

    def catch_up(self) -> None:
        """Read until nothing new has come for a while: the server is idle."""
        quiet = 0
        while quiet < 3:
            batches = replay(self.endpoint, self._next)
            for number, payload in batches:
                assert number == self._next, "no batch is missing"
                self.cache.receive(payload)
                self._next += 1
            quiet = 0 if batches else quiet + 1
            time.sleep(0.3)


@pytest.mark.server
def test_two_data_parallel_ranks_have_an_arena_each_and_their_events_are_what_hits(
    pytestconfig: pytest.Config,
) -> None:
    family = prepare("gemma3", pytestconfig.rootpath / "build" / "identity")
    flag, config = events_flag(ranks=2)
    tensor_parallel = variant("tensor_parallel", family.name)  # it names a core for each rank
    spec = ServerSpec(
        model_path=family.checkpoint,
        jenga=True,
        flags=(
            *("--max-total-tokens", TIGHT_TOKENS, "--chunked-prefill-size", "64"),
            *("--dp-size", "2", "--kv-events-config", flag, "--max-running-requests", "16"),
        ),
        env=jenga_spec(tensor_parallel, family.name, family.checkpoint, family.adapter).env,
    )
    log_path = family.work_dir / "logs" / "test-dp.log"
    with serving(spec, log_path) as server:
        client = Client(server.url)
        base = int(config["replay_endpoint"].rsplit(":", 1)[1])
        routers = [Router(f"tcp://127.0.0.1:{base + rank}") for rank in range(2)]
        for load in (prompts.GROWING, prompts.MIXED):
            client.map(client.generate, load, concurrency=8)

        log = server.log_since()
        for rank in range(2):  # hooks and refusals are of every process
            assert f" DP{rank}] Jenga: arena: " in log
        hits = [arena["hits"] for arena in arenas(client)]
        assert len(hits) == 2 and all(rank["requests"] > 10 for rank in hits)
        assert any(sum(a["evicted_tokens"].values()) for a in arenas(client)), "there was pressure"
        tried: Counter[int] = Counter()
        for rank, router in enumerate(routers):
            router.catch_up()
            assert router.cache.removed > 0
            for text in sorted(router.cache.longest_texts())[:6]:
                if text not in router.cache.texts():
                    continue  # an answer before this one took its place
                ask = Request(input_ids=(*text, 7), max_new_tokens=1)
                answer = client.generate(ask, routed_dp_rank=rank, rid=f"believed-{rank}")
                assert answer.cached_tokens == len(text), "what is published is hit"
                tried[rank] += 1
                router.catch_up()
        assert set(tried) == {0, 1}
        by_rank = {arena["dp_rank"]: arena["hits"]["reports"] for arena in arenas(client)}
        assert set(by_rank) == {0, 1}
        for rank in range(2):
            assert request_digest(f"believed-{rank}") in by_rank[rank]
            told = explain(server.url, "--rid", f"believed-{rank}", "--format", "json")
            assert json.loads(told)["hit_tokens"] > 0
        assert "requests" in explain(server.url, "--last", "2")
        assert server.trouble_since() == []


@pytest.mark.server
def test_tensor_parallel_ranks_show_one_arena_and_publish_once(
    pytestconfig: pytest.Config,
) -> None:
    family = prepare("gemma3", pytestconfig.rootpath / "build" / "identity")
    plain = jenga_spec(
        variant("tensor_parallel", family.name), family.name, family.checkpoint, family.adapter
    )
    flag, config = events_flag(ranks=1)
    spec = ServerSpec(
        model_path=plain.model_path,
        jenga=True,
        flags=(*plain.flags, "--kv-events-config", flag),
        env=plain.env,
    )
    with serving(spec, family.work_dir / "logs" / "test-tp-events.log") as server:
        client = Client(server.url)
        client.map(client.generate, prompts.MIXED, concurrency=8)
        assert len(arenas(client)) == 1
        router = Router(config["replay_endpoint"].replace("*", "127.0.0.1"))
        router.catch_up()
        text = max(router.cache.longest_texts(), key=len)
        answer = client.generate(Request(input_ids=(*text, 7), max_new_tokens=1))
        assert answer.cached_tokens == len(text)
        assert server.trouble_since() == []


@pytest.mark.server
def test_a_server_killed_under_load_loses_its_own_requests_and_the_router_carries_on(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    python = router_python(pytestconfig.rootpath)
    report = run_scale(
        "router", "--kill-at", "0.4", "--max-tokens", "48", folder=tmp_path, python=python
    )
    load, killed = report["load"], report["killed"]
    assert report["answered"] == load["groups"] * load["chats"] * load["turns"]
    alive = report["servers"][0]
    assert alive["requests"] > load["groups"], "the ids of the router are those of the servers"
    assert killed["lost_elsewhere"] == killed["lost_after"] == []
    assert len(killed["lost"]) <= killed["running"]


@pytest.mark.server
def test_cache_aware_routing_keeps_chats_where_their_prefix_is(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    python = router_python(pytestconfig.rootpath)
    report = run_scale("router", folder=tmp_path, python=python)
    requests = sum(one["requests"] for one in report["servers"])
    assert requests == report["answered"] == len(report["asked"])
    hits = sum(one["hit_tokens"] for one in report["servers"])
    assert hits == sum(one["cached_tokens"] for one in report["asked"])
    # Every later turn of a chat finds what the turns before it left.
    later = [one for one in report["asked"] if "-turn-0-" not in one["name"]]
    found = sum(one["cached_tokens"] for one in later) / sum(one["prompt_tokens"] for one in later)
    assert found > 0.8
    assert all(one["requests"] for one in report["servers"])


def run_scale(mode: str, *flags: str, folder: Path, python: str) -> dict[str, Any]:
    """The report of one run of the documented command."""
    output = folder / "report.json"
    arguments = [mode, *flags, "--folder", str(folder), "--router-python", python]
    assert scale.main([*arguments, "--output", str(output)]) == 0
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return report


def arenas(client: Client) -> list[dict[str, Any]]:
    """The arena of each scheduler."""
    import requests

    reply = requests.get(f"{client.url}/server_info", timeout=60).json()
    return [state["jenga"] for state in reply["internal_states"]]


def explain(url: str, *args: str) -> str:
    command = [sys.executable, "-m", "sglang_jenga.cli", "explain", url, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
