# SPDX-License-Identifier: Apache-2.0
"""What a model has no row for is named, what it has is let through."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_jenga.sglang_ext.vocabulary import Tables, problem, tables_of

TABLES = Tables(rows=108, logits=100, hidden=4)


def arrived(ids: list[int] | None, *, sampling: dict[str, Any] | None = None, **more: Any) -> Any:
    given = {"stop_token_ids": None, "min_new_tokens": 0, "top_k": 1, **(sampling or {})}
    fields = {"mm_inputs": None, "return_logprob": False, "input_embeds": None, **more}
    return SimpleNamespace(
        input_ids=None if ids is None else array("q", ids),
        sampling_params=SimpleNamespace(**given),
        **fields,
    )


@pytest.mark.parametrize("ids", [[0], [107, 0, 99], [5] * 1000])
def test_ids_with_a_row_are_let_through(ids: list[int]) -> None:
    assert problem(arrived(ids), TABLES) is None


@pytest.mark.parametrize("ids", [[5, 108], [-1], [0, 2**40]])
def test_the_first_id_without_a_row_is_named(ids: list[int]) -> None:
    why = problem(arrived([*ids, 5]), TABLES)
    assert why is not None and f"token id {ids[-1]} at position {len(ids) - 1}" in why
    assert "[0, 108)" in why


def test_what_stands_for_an_image_needs_no_row_and_everything_beside_it_does() -> None:
    images = SimpleNamespace(im_token_id=500)
    assert problem(arrived([500, 5], mm_inputs=images), TABLES) is None
    assert "501" in (problem(arrived([500, 501], mm_inputs=images), TABLES) or "")
    assert "500" in (problem(arrived([500, 5]), TABLES) or ""), "no image, no placeholder"


@pytest.mark.parametrize(
    ("sampling", "more", "told"),
    [
        ({"stop_token_ids": {100}, "min_new_tokens": 1}, {}, "stop_token_ids"),
        ({"stop_token_ids": {-1}, "min_new_tokens": 1}, {}, "stop_token_ids"),
        ({"top_k": 2**31}, {}, "top_k"),
        ({"min_new_tokens": 2**31}, {}, "min_new_tokens"),
        ({}, {"return_logprob": True, "top_logprobs_num": 101, "logprob_start_len": -1}, "100"),
        ({}, {"return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": -7}, "-7"),
        ({}, {"input_embeds": [[0.0] * 4, [0.0] * 3]}, "position 1 has 3 numbers"),
        ({}, {"input_embeds": [[0.0] * 4, 3.0]}, "position 1 is not a list"),
        ({}, {"input_embeds": []}, "empty"),
    ],
)
def test_other_numbers_that_would_kill_the_scheduler(
    sampling: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    assert told in (problem(arrived([5], sampling=sampling, **more), TABLES) or "nothing")


@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        ({"stop_token_ids": {5000}}, {}),  # compared, not looked up
        ({"stop_token_ids": {99}, "min_new_tokens": 3, "top_k": 1 << 30}, {}),
        ({}, {"return_logprob": True, "top_logprobs_num": 100, "logprob_start_len": -1}),
        ({}, {"input_embeds": [[0.0] * 4]}),
    ],
)
def test_what_runs_is_let_through(sampling: dict[str, Any], more: dict[str, Any]) -> None:
    assert problem(arrived([5], sampling=sampling, **more), TABLES) is None


def test_a_prompt_without_tokens_is_one_only_in_a_session() -> None:
    assert problem(arrived([]), TABLES) == "input_ids is empty."
    assert problem(arrived([], session_params=object()), TABLES) is None
    assert problem(arrived(None), TABLES) is None, "embeddings stand for it"


def test_the_rows_are_those_of_the_models_own_embedding() -> None:
    config = SimpleNamespace(vocab_size=100, hidden_size=4)
    model: Any = torch.nn.Module()
    assert tables_of(config, model) == Tables(rows=100, logits=100, hidden=4)
    model.get_input_embeddings = lambda: torch.nn.Embedding(108, 4)
    assert tables_of(config, model) == TABLES
