# SPDX-License-Identifier: Apache-2.0
"""States at branches, on a real server: what each visitor of a shared prefix is told it hit."""

from __future__ import annotations

import pytest

from server.client import Client, Request
from server.pool import ServerPool, group_of
from server.prompts import words
from sglang_jenga.core.request_digest import request_digest

#: Length of a common beginning -> what four visitors hit one after the other on SGLang's own pools
#: (Qwen3-Next, chunks of 128, the kernels' 64). The second one hits where a chunk of the first
#: ended, and leaves a state where it parts from it.
STOCK_HITS = {
    255: (0, 128, 192, 192),
    256: (0, 256, 256, 256),
    300: (0, 256, 256, 256),
    319: (0, 256, 256, 256),
    320: (0, 256, 320, 320),
    383: (0, 256, 320, 320),
}


@pytest.mark.server
@pytest.mark.xdist_group(group_of("qwen3_next", "plain"))
def test_each_visitor_of_a_prefix_hits_what_stock_hits(pool: ServerPool) -> None:
    server = pool.get("qwen3_next", "plain").server
    (size,) = {line for line in server.log_since().splitlines() if "arena size: " in line}
    assert "for tokens (--max-total-tokens" in size
    assert "for 65 recurrent states (--max-mamba-cache-size 64)" in size
    client = Client(server.url)
    assert client.flush(wait_seconds=20)
    for prefix, expected in STOCK_HITS.items():
        common = words(1000 + prefix, prefix)
        told = []
        for visitor in range(4):
            tail = words(2000 + 10 * prefix + visitor, 70)
            rid = f"visitor-{prefix}-{visitor}"
            answer = client.generate(Request(input_ids=(*common, *tail), max_new_tokens=4), rid=rid)
            told.append(answer.cached_tokens)
            report = client.arena()["hits"]["reports"][request_digest(rid)]
            assert report["hit_tokens"] == told[-1]
            if visitor:
                assert report["full_only_tokens"] == prefix, report
                assert (report["cut_by"] == "state") == (told[-1] < prefix), report
                assert report["evicted_by"] is None, "nothing was evicted"
        assert all(a >= b for a, b in zip(told, expected, strict=True)), (prefix, told)
