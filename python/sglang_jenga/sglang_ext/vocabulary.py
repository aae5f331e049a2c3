# SPDX-License-Identifier: Apache-2.0
"""Requests that would index past a table of the model are answered 400, not run.

An id without a row in the embedding, or a stop token without a logit, raises in the forward, and
SGLang's scheduler dies of it with every request on the server. SGLang checks some of a request's
ids in its HTTP process (``logit_bias``, ``token_ids_logprob``); here the rest is checked where all
frontends meet, in the scheduler, which has the model.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

from sglang_jenga.core.request_digest import request_digest

logger = logging.getLogger(__name__)


_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What a request may index. rows: of the embedding. logits: per position. hidden: a row's."""

    rows: int
    logits: int
    hidden: int


def tables_of(model_config: Any, model: Any) -> Tables:
    """The tables of a built model.

    The embedding may have rows for more tokens than there are logits: Llama 3.2 Vision has some for
    images, which it reads and never says.
    """
    logits = int(model_config.vocab_size)
    try:
        embeddings = [model.get_input_embeddings()]
    except (AttributeError, NotImplementedError):  # not all model files say which one it is
        embeddings = [m for m in model.modules() if type(m) is VocabParallelEmbedding]
    rows = [int(found.num_embeddings) for found in embeddings if hasattr(found, "num_embeddings")]
    return Tables(
        rows=max(rows, default=logits), logits=logits, hidden=int(model_config.hidden_size)
    )


def problem(request: Any, tables: Tables) -> str | None:
    """Why a tokenized request cannot be computed, None: it can. Nothing is changed."""
    checks: tuple[Callable[[Any, Tables], str | None], ...] = (_ids, _stops, _numbers, _embeds)
    for check in checks:
        found = check(request, tables)
        if found is not None:
            return found
    return None


def _ids(request: Any, tables: Tables) -> str | None:
    if not request.input_ids:
        is_missing = request.input_ids is not None and not getattr(request, "session_params", None)
        return "input_ids is empty." if is_missing and request.mm_inputs is None else None
    ids = np.asarray(request.input_ids, dtype=np.int64)
    wrong = (ids < 0) | (ids >= tables.rows)
    if not wrong.any():
        return None
    if request.mm_inputs is not None:  # replaced before the model looks them up
        wrong &= ~np.isin(ids, _placeholders(request.mm_inputs))
        if not wrong.any():
            return None
    first = int(np.flatnonzero(wrong)[0])
    return (
        f"input_ids contains out-of-vocabulary token id {int(ids[first])} at position {first}; "
        f"valid range is [0, {tables.rows})."
    )


def _placeholders(mm_inputs: Any) -> list[int]:
    images = ("im_token_id", "im_start_id", "im_end_id", "slice_start_id", "slice_end_id")
    names = (*images, "video_token_id", "audio_token_id", "audio_start_id", "audio_end_id")
    found = (getattr(mm_inputs, name, None) for name in names)
    return [value for value in found if isinstance(value, int)]


def _stops(request: Any, tables: Tables) -> str | None:
    """Stop tokens are indices where they are put off (``min_new_tokens``)."""
    sampling = request.sampling_params
    stops: Collection[int] = getattr(sampling, "stop_token_ids", None) or ()
    if not getattr(sampling, "min_new_tokens", 0):
        return None
    for token in sorted(stops):
        if not 0 <= token < tables.logits:
            return (
                f"stop_token_ids contains out-of-vocabulary token id {token}; valid range with "
                f"min_new_tokens is [0, {tables.logits})."
            )
    return None


def _numbers(request: Any, tables: Tables) -> str | None:
    """Numbers that become indices, or go into tensors of 32 bits."""
    sampling = request.sampling_params
    for name in ("top_k", "min_new_tokens"):
        value = getattr(sampling, name, None) or 0
        if value > _MOST:
            return f"{name} is {value}; at most {_MOST} is possible."
    if not getattr(request, "return_logprob", False):
        return None
    if not 0 <= (most := request.top_logprobs_num or 0) <= tables.logits:
        return f"top_logprobs_num is {most}; the vocabulary has {tables.logits} tokens."
    if (start := request.logprob_start_len) is not None and start < -1:
        return f"logprob_start_len is {start}; -1 (no token of the prompt) is the least."
    return None


def _embeds(request: Any, tables: Tables) -> str | None:
    embeds = getattr(request, "input_embeds", None)
    if embeds is None:
        return None
    if not embeds:
        return "input_embeds is empty."
    for position, row in enumerate(embeds):
        length = len(row) if isinstance(row, (list, tuple, np.ndarray)) else None
        if length != tables.hidden:
            found = "is not a list" if length is None else f"has {length} numbers"
            return (
                f"input_embeds at position {position} {found}; the model's hidden size is "
                f"{tables.hidden}."
            )
    return None


# ---- the scheduler's door ------------------------------------------------------------------------

_TABLES = "jenga_tables"


def problem_for(scheduler: Any, request: Any) -> str | None:
    """:func:`problem` of a request that arrives at ``scheduler``."""
    tables = getattr(scheduler, _TABLES, None)
    if tables is None:
        tables = tables_of(scheduler.model_config, scheduler.tp_worker.model_runner.model)
        setattr(scheduler, _TABLES, tables)
    return problem(request, tables)


def answer_400(scheduler: Any, request: Any, why: str) -> None:
    """Answer a generation request with an error at once, as SGLang does for a bad beam search.

    A session does not hear of it: its next turn continues the last one that was answered.
    """
    from sglang.srt.disaggregation.utils import prepare_abort

    req = scheduler._create_generation_req(
        request,
        request.rid,
        request.input_text,
        array("q", [0]),
        request.sampling_params,
        stream=request.stream,
        vocab_size=scheduler.model_config.vocab_size,
        http_worker_ipc=request.http_worker_ipc,
        time_stats=request.time_stats,
    )
    req.tokenizer = scheduler.tokenizer
    logger.error("Jenga: request %s is answered 400: %s", request_digest(request.rid), why)
    prepare_abort(req, why, status_code=HTTPStatus.BAD_REQUEST)
    scheduler.output_streamer.stream_output([req], False)


def mark_400(scheduler: Any, rid: str, why: str) -> None:
    """Answer an embedding request that has just been queued with an error."""
    for req in scheduler.waiting_queue:
        if req.rid == rid:
            req.set_finish_with_abort(why)
