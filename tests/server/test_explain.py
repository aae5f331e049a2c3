# SPDX-License-Identifier: Apache-2.0
"""On a real server under pressure, explanations agree with what each request was told it hit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from server import prompts
from server.client import Answer, Client, Request
from server.pool import ServerPool, group_of
from sglang_jenga.core.request_digest import request_digest


@pytest.mark.server
@pytest.mark.xdist_group(group_of("gemma3", "tight"))
def test_a_server_explains_the_hits_of_its_requests(pool: ServerPool) -> None:
    server = pool.get("gemma3", "tight").server
    client = Client(server.url)
    assert client.flush(wait_seconds=20)
    client.map(client.generate, prompts.GROWING, concurrency=8)  # fills the arena

    def ask(item: tuple[int, Request]) -> Answer:
        return client.generate(item[1], rid=f"mixed-{item[0]}")

    answers = client.map(ask, list(enumerate(prompts.MIXED)), concurrency=8)
    hits = client.arena()["hits"]
    reports = [hits["reports"][request_digest(f"mixed-{i}")] for i in range(len(answers))]
    assert "mixed-" not in json.dumps(hits), "ids are not told"
    for report, answer in zip(reports, answers, strict=True):
        if not answer.retractions:  # another start may find more or less
            assert report["hit_tokens"] == answer.cached_tokens, report
        assert report["hit_tokens"] == report["tokens_by_kind"]["window"]
        assert (report["cut_by"] is None) == (report["hit_tokens"] == report["full_only_tokens"]), (
            report
        )
    assert any(report["hit_tokens"] for report in reports)
    assert hits["full_only_tokens"] - hits["hit_tokens"] == sum(hits["cut_tokens"].values())

    told = _explain(server.url, "--token-ids", ",".join(map(str, prompts.words(1, 90))))
    assert "hit 0 of 89 tokens" in told.splitlines()[0]
    assert "from token 0 on: not known to the cache" in told
    again = json.loads(_explain(server.url, "--rid", "mixed-3", "--format", "json"))
    assert again == reports[3]
    assert "full attention alone had" in _explain(server.url, "--last", "3")


def _explain(url: str, *args: str) -> str:
    command = [sys.executable, "-m", "sglang_jenga.cli", "explain", url, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
