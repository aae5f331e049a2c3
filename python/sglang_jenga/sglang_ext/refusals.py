# SPDX-License-Identifier: Apache-2.0
"""What Jenga refuses at start, naming flag, value, reason and alternative.

The launcher checks twice: what the user wrote, before SGLang resolves defaults (early, so that the
message names what they wrote), and what SGLang resolved to, so that a feature it switches on by
itself is caught too. Models are refused after they are built, when their layers are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import ATTENTION_BACKENDS
from sglang_jenga.core.policies import Chunked, TokenPolicy, Window
from sglang_jenga.core.printable import shown
from sglang_jenga.sglang_ext.config import load_config
from sglang_jenga.sglang_ext.refusal import Refusal
from sglang_jenga.sglang_ext.refusal_table import (
    CHUNKED_BACKENDS,
    ENCODER_ARCHITECTURES,
    OWN_POLICY_BACKENDS,
    REFUSALS,
)


def problem(row: Refusal, value: Any) -> str:
    """The message for one refused value."""
    return (
        f"{row.flag} (value {shown(value)}) does not work with --radix-cache-backend jenga: "
        f"{row.reason}. Instead: {row.alternative}."
    )


def _check(config: Any, rows: Iterable[Refusal]) -> None:
    problems = [problem(row, value) for row in rows if row.refuses(value := row.value_in(config))]
    if problems:
        raise ConfigError("\n".join(problems))


def check_early(server_args: Any) -> None:
    """Refuse what the user wrote, and settings that do not parse.

    Raises:
        ConfigError: every problem at once.
    """
    load_config()
    _check(server_args, REFUSALS)
    require_whole_pages(server_args.page_size, server_args.chunked_prefill_size)


def check_resolved(server_args: Any) -> None:
    """Refuse the model where its configuration says that the arena cannot hold it, and what SGLang
    resolved to, defaults and model overrides included.

    The model first: SGLang picks backends for some that no flag could put right.

    Raises:
        ConfigError: the model, or every problem of the flags at once.
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view, use_mla_backend

    from sglang_jenga.sglang_ext.apart import require_known_rows

    view = resolving_view(server_args)
    require_known_rows(model_config_of(view), latent=use_mla_backend(view))
    _check(view, [row for row in REFUSALS if not row.explicit_only])
    require_whole_pages(view.page_size, view.chunked_prefill_size)


def require_whole_pages(page_tokens: int | None, chunk_tokens: int | None) -> None:
    """Refuse a page size that does not divide the chunks of prompts.

    Args:
        page_tokens: ``--page-size``, at least 1. None: not known yet.
        chunk_tokens: ``--chunked-prefill-size``; None: not known yet; below 1: prompts are not cut.

    Raises:
        ConfigError: with both numbers.
    """
    if page_tokens is None or chunk_tokens is None or chunk_tokens < 1:
        return
    if chunk_tokens % page_tokens:
        raise ConfigError(
            f"--page-size {page_tokens} does not divide --chunked-prefill-size {chunk_tokens}: a "
            "chunk ends with a page. Instead: use a page size that divides it, a multiple of the "
            "page size, or -1 (whole prompts)."
        )


def check_backends(backends: Iterable[str | None], window: TokenPolicy | None) -> None:
    """Refuse attention backends that would read this model's window kind wrongly.

    Args:
        backends: the resolved prefill and decode backends.
        window: policy of the window kind, where the model has one.

    Raises:
        ConfigError: naming the backend and those that serve the model.
    """
    if window is None:
        return
    what = f"layers of kind {window}"
    allowed: tuple[str, ...] = OWN_POLICY_BACKENDS
    if isinstance(window, Window):
        what, allowed = "sliding windows", ATTENTION_BACKENDS
    elif isinstance(window, Chunked):
        what, allowed = "chunked-local attention", CHUNKED_BACKENDS
    for backend in backends:
        if backend is not None and backend not in allowed:
            raise ConfigError(
                f"--attention-backend {backend} does not work with --radix-cache-backend jenga for "
                f"this model: it would read {what} wrongly. Instead: use one of "
                f"{', '.join(allowed)}."
            )


def require_checked_encoder(architectures: Iterable[str], page_size: int) -> None:
    """Refuse encoder-decoder models, and page sizes for them, that were not checked.

    Raises:
        ConfigError: naming the model or the flag.
    """
    name = next(iter(architectures))
    if name not in ENCODER_ARCHITECTURES:
        raise ConfigError(
            f"--radix-cache-backend jenga does not support {name}: of encoder-decoder models only "
            f"{', '.join(ENCODER_ARCHITECTURES)} was checked. Drop --radix-cache-backend to serve "
            "it with SGLang's own pools."
        )
    if page_size != 1:
        raise ConfigError(
            f"--page-size (value {page_size}) does not work with --radix-cache-backend jenga for "
            f"{name}: SGLang looks for the last slot of a request without counting its images. "
            "Instead: use --page-size 1."
        )


def reject_beam_search() -> str:
    """The answer to a request with ``beam_width`` above 1."""
    return (
        "Beam search is not supported with --radix-cache-backend jenga: beam members fork rows "
        "without a request of their own. Instead: use parallel sampling (n above 1)."
    )
