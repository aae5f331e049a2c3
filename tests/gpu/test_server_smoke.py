# SPDX-License-Identifier: Apache-2.0
"""A real server on CUDA answers from an arena what it answers from SGLang's own pools."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.demo.server import Server
from sglang_jenga.tiny import FAMILIES, build

pytestmark = [pytest.mark.gpu, pytest.mark.server]

FLAGS = ("--dtype", "bfloat16", "--max-total-tokens", "16384", "--random-seed", "0")
CUDA = ("--attention-backend", "flashinfer")
#: They ask for images, which other tests send.
PICTURES = ("mllama", "gemma3_vision")
START_SECONDS = 600.0  # FlashInfer compiles its kernels on first use


def prompts() -> list[list[int]]:
    """Token ids, up to eleven windows long, no two prompts with a common start.

    Prompts that branch would hit at other lengths on a server whose windows slide, and another
    chunk length may change the last bit of a matrix product in bfloat16.
    """
    lengths = [300, 70, 513, 9, 130, 260, 40, 700]
    return [
        [5 + (i * 131 + 17 * position) % 900 for position in range(length)]
        for i, length in enumerate(lengths)
    ]


def post(url: str, ids: Sequence[int]) -> dict[str, Any]:
    body = {
        "input_ids": list(ids),
        "sampling_params": {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True},
    }
    request = urllib.request.Request(
        f"{url}/generate",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def answers(model: str, flags: Sequence[str], log: Path) -> dict[str, Any]:
    """Token ids of two rounds, one request at a time: the second round finds its prefixes cached.

    Then all prompts at once, of which only the lengths are compared: batches form by timing.
    """
    with Server(model, [*FLAGS, *flags], log_path=log) as server:
        server.wait_until_ready(START_SECONDS, lambda elapsed: None)
        rounds = [[post(server.url, ids) for ids in prompts()] for _ in range(2)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda ids: post(server.url, ids), prompts()))
        with urllib.request.urlopen(f"{server.url}/server_info", timeout=60) as reply:
            state = json.load(reply)["internal_states"][0]
        server.require_running()
    return {
        "tokens": [[answer["output_ids"] for answer in one] for one in rounds],
        "cached": [sum(a["meta_info"]["cached_tokens"] for a in one) for one in rounds],
        "together": [len(answer["output_ids"]) for answer in together],
        "arena": state.get("jenga"),
    }


def assert_same_answers(tmp_path: Path, flags: Sequence[str]) -> None:
    model = str(build("gemma3", tmp_path / "model", preset="demo"))
    stock = answers(model, flags, tmp_path / "stock.log")
    jenga = answers(model, [*flags, "--radix-cache-backend", "jenga"], tmp_path / "jenga.log")
    assert stock["arena"] is None and jenga["arena"] is not None
    assert jenga["tokens"] == stock["tokens"]
    assert jenga["cached"] == stock["cached"], "with room for everything both cache the same"
    assert jenga["cached"][1] > jenga["cached"][0]
    assert jenga["together"] == [48] * len(prompts())
    held = [kind["slots_held"] for kind in jenga["arena"]["kinds"]]
    assert held == [0, 0], "slots are held although no request runs"


def test_a_server_on_flashinfer_answers_as_with_stock_pools(tmp_path: Path) -> None:
    assert_same_answers(tmp_path, CUDA)


def test_a_server_on_triton_answers_as_with_stock_pools(tmp_path: Path) -> None:
    assert_same_answers(tmp_path, ("--attention-backend", "triton"))


def families() -> list[str]:
    """Families of tiny checkpoints that answer to token ids alone."""
    return [name for name in FAMILIES if name not in PICTURES]


@pytest.mark.parametrize("family", families())
def test_a_server_of_every_family_answers_twice_the_same(family: str, tmp_path: Path) -> None:
    """The second answers come from cached prefixes; in the end nobody holds a slot."""
    model = str(build(family, tmp_path / "model", preset="test"))
    found = answers(model, ["--radix-cache-backend", "jenga"], tmp_path / "server.log")
    first, second = found["tokens"]
    assert [len(tokens) for tokens in first] == [48] * len(prompts())
    assert second == first
    assert found["cached"][1] > found["cached"][0]
    assert all(kind["slots_held"] == 0 for kind in found["arena"]["kinds"])
    log = (tmp_path / "server.log").read_text(encoding="utf-8")
    assert "Jenga: kernels: " in log, "the boot log says how its kernels were checked"
