# SPDX-License-Identifier: Apache-2.0
"""A real server is stopped neither by sessions that outgrow it nor by ids it has no row for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import requests

from server import prompts
from server.client import Answer, Client, Refused
from server.compare import first_difference, until_tie
from server.launch import RunningServer, ServerSpec, serving
from server.matrix import build_checkpoint

SESSIONS, TURNS, TURN_TOKENS, PLAIN = 8, 4, 250, 4
#: The server hung for good; alone it takes a tenth of this.
MOST_SECONDS = 240.0
VOCABULARY = 1024

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("liveness")]


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config) -> Iterator[RunningServer]:
    """Sessions outgrow its arena (some 5,000 tokens) and its request rows."""
    work_dir = pytestconfig.rootpath / "build" / "identity"
    spec = ServerSpec(
        model_path=build_checkpoint("gpt_oss", work_dir),
        jenga=True,
        flags=(
            *("--enable-streaming-session", "--max-total-tokens", "4096"),
            *("--chunked-prefill-size", "256", "--max-running-requests", "6"),
        ),
    )
    with serving(spec, work_dir / "logs" / "test-liveness.log") as running:
        yield running


def test_sessions_that_outgrow_the_arena_are_all_answered_and_right(server: RunningServer) -> None:
    client, mark = Client(server.url), server.log_size()
    names = [client.open_session(streaming=True) for _ in range(SESSIONS)]
    said: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
    last: dict[str, tuple[tuple[int, ...], Answer]] = {}
    start = time.monotonic()

    def ask(item: tuple[str | None, int]) -> Answer:
        name, seed = item
        request = prompts.ask(prompts.words(seed, TURN_TOKENS), 8)
        where = {} if name is None else {"session_params": {"id": name}}
        return client.generate(request, top_logprobs_num=2, **where)

    for turn in range(TURNS):
        asked = [(name, 100 * turn + i) for i, name in enumerate(names)]
        plain = [(None, 100 * turn + 50 + i) for i in range(PLAIN)]
        answers = client.map(ask, [*asked, *plain], concurrency=SESSIONS + PLAIN)
        for (name, seed), answer in zip(asked, answers[:SESSIONS], strict=True):
            history = said[name] + prompts.words(seed, TURN_TOKENS)
            assert answer.prompt_tokens == len(history), "a turn lost what was said before"
            last[name] = history, answer
            said[name] = history + answer.ids
    assert time.monotonic() - start < MOST_SECONDS

    arena = client.arena()
    assert arena["sessions"]["evicted"] > 0 and arena["sessions"]["idle"] > 0
    held = sum(kind["slots_sessions"] for kind in arena["kinds"])
    assert held > 0 and not any(kind["slots_held"] for kind in arena["kinds"])
    assert "gives way" in server.log_since(mark)
    for name in names:
        client.close_session(name)
    assert client.arena()["sessions"]["idle"] == 0
    assert client.flush(wait_seconds=5)
    for history, answer in last.values():
        alone = client.generate(prompts.ask(history, 8), top_logprobs_num=2)
        assert first_difference(alone, until_tie(alone, answer)) is None
    assert server.trouble_since(mark) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"input_ids": [5, 5000]}),
        ("/generate", {"input_ids": [5, -2]}),
        ("/generate", {"input_ids": [[5, 6], [5, VOCABULARY]]}),
        ("/v1/completions", {"model": "default", "prompt": [5, 5000], "max_tokens": 4}),
        ("/v1/completions", {"model": "default", "prompt": [[5, 6], [7, -1]], "max_tokens": 4}),
        (
            "/generate",
            {"input_ids": [5], "sampling_params": {"stop_token_ids": [-9], "min_new_tokens": 2}},
        ),
        (
            "/generate",
            {"input_ids": [5], "sampling_params": {"stop_token_ids": [5000], "min_new_tokens": 2}},
        ),
        ("/generate", {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 5000}),
        ("/generate", {"input_ids": [5], "return_logprob": True, "token_ids_logprob": [5000]}),
        ("/generate", {"input_ids": [5], "sampling_params": {"logit_bias": {"5000": 1}}}),
        ("/generate", {"input_ids": [5], "return_logprob": True, "logprob_start_len": -7}),
        ("/generate", {"input_ids": [5], "sampling_params": {"top_k": 10**12, "temperature": 1}}),
        ("/generate", {"input_ids": [[]]}),
    ],
)
def test_what_would_kill_the_scheduler_is_answered_400(
    server: RunningServer, path: str, body: dict[str, object]
) -> None:
    mark = server.log_size()
    reply = requests.post(f"{server.url}{path}", json=body, timeout=60)
    assert reply.status_code == 400, reply.text
    named = ("vocabulary", "logit_bias", "logprob_start_len", "top_k", "empty")
    assert any(word in reply.text for word in named), reply.text
    assert Client(server.url).generate(prompts.ask((5, VOCABULARY - 1), 2)).ids, "it still serves"
    assert "SIGQUIT" not in server.log_since(mark) and server.alive


def test_a_session_goes_on_after_a_turn_that_was_answered_400(server: RunningServer) -> None:
    client = Client(server.url)
    where = {"session_params": {"id": client.open_session(streaming=True)}}
    first = client.generate(prompts.ask(prompts.words(1, 20), 4), **where)
    with pytest.raises(Refused, match=r"5000.*valid range is \[0, 1024\)") as refused:
        client.generate(prompts.ask((5, 5000), 4), **where)
    assert refused.value.status == 400
    after = client.generate(prompts.ask(prompts.words(2, 10), 4), **where)
    assert after.prompt_tokens == 20 + len(first.ids) + 10
