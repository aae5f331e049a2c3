# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga plan``: the arena of a model from its config.json, before anything is started."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass, replace

from sglang_jenga.cli.arguments import add_output, size
from sglang_jenga.cli.plan_text import describe, to_json
from sglang_jenga.core.configs.dtypes import KV_DTYPES, STATE_DTYPES
from sglang_jenga.core.configs.find import FoundConfig, find_config
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import ServeFlags, StoredModel, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import (
    ATTENTION_BACKENDS,
    EVERY_GPU,
    AttentionUse,
    attention_problems,
    attention_warnings,
    state_problem,
)
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.managers import Capacity, Lengths, Scene, compare
from sglang_jenga.core.printable import printable, shown
from sglang_jenga.core.sizes import format_bytes
from sglang_jenga.core.sizing import SizedArena, size_arena

EXAMPLES = f"""examples:
  sglang-jenga plan gemma3-27b --kv 40GiB
  sglang-jenga plan ./my-model --memory 80GiB --tp 2 --prompt-tokens 16000 --output-tokens 800
  sglang-jenga plan my-model/config.json --kv 24GiB --kv-cache-dtype fp8_e4m3 --format json

names: {", ".join(PUBLISHED)}
"""
#: SGLang's cache of image embeddings (SGLANG_VLM_CACHE_SIZE_MB), whose bytes the arena takes over.
_SIDE_CACHE_BYTES = 100 * 2**20
_USUAL_MEMORY_BYTES = 80 * 2**30
_MOST_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of the arena on each GPU. derived: how they were found, empty: they were given."""

    arena_bytes: int
    derived: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is printed."""

    found: FoundConfig
    model: StoredModel
    flags: ServeFlags
    sized: SizedArena
    lengths: Lengths
    capacities: tuple[Capacity, ...]
    budget: Budget
    command: str
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config.json, a directory that has one, or a known name")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--kv", type=size, metavar="SIZE", help="bytes of the arena, as 40GiB")
    budget.add_argument(
        "--memory", type=size, metavar="SIZE", help="memory of one GPU, weights included (80GiB)"
    )
    parser.add_argument(
        "--weights", type=size, metavar="SIZE", help="bytes of all weights (default: found)"
    )
    parser.add_argument(
        "--mem-fraction-static",
        type=float,
        default=0.85,
        metavar="SHARE",
        help="of --memory, for weights and the arena (%(default)s; goes into the command)",
    )
    parser.add_argument("--tp", type=_count, default=1, help="tensor parallel ranks (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="the model computes in (%(default)s)")
    parser.add_argument(
        "--kv-cache-dtype", choices=("auto", *KV_DTYPES), default="auto", help="(%(default)s)"
    )
    parser.add_argument("--mamba-ssm-dtype", choices=tuple(STATE_DTYPES), help="of states")
    parser.add_argument(
        "--mamba-conv-dtype",
        choices=tuple(STATE_DTYPES),
        help="of convolution states: the server's variable SGLANG_MAMBA_CONV_DTYPE",
    )
    parser.add_argument("--page-size", type=_count, default=1, help="tokens (%(default)s)")
    parser.add_argument(
        "--chunked-prefill-size", type=_whole, metavar="TOKENS", help="-1: whole prompts (8192)"
    )
    parser.add_argument("--enable-multimodal", action="store_true", help="as the server's flag")
    parser.add_argument(
        "--attention-backend", choices=ATTENTION_BACKENDS, help="as the server's flag, checked"
    )
    parser.add_argument(
        "--gpu", choices=EVERY_GPU, help="with --attention-backend (default: all of these)"
    )
    parser.add_argument("--draft", metavar="CONFIG", help="a draft model in the same arena")
    parser.add_argument("--prompt-tokens", type=_count, default=4096, help="(%(default)s)")
    parser.add_argument("--output-tokens", type=_whole, default=512, help="(%(default)s)")
    parser.add_argument(
        "--image-tokens", type=_whole, help="of a request, in cross layers (one picture's)"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> str:
    """What to print.

    Raises:
        ConfigError: for the user to read.
    """
    report = make_report(args)
    if args.format == "json":
        return json.dumps(to_json(report), indent=2)
    return describe(report)


def make_report(args: argparse.Namespace) -> Report:
    """The plan that the arguments ask for."""
    found = find_config(args.config)
    flags = ServeFlags(
        tp=args.tp,
        dtype=args.dtype,
        kv_cache_dtype=args.kv_cache_dtype,
        mamba_ssm_dtype=args.mamba_ssm_dtype,
        mamba_conv_dtype=args.mamba_conv_dtype,
        enable_multimodal=args.enable_multimodal,
    )
    model = read_model(found.config, flags, quant=found.quant)
    if model.family.page_one and args.page_size != 1:
        raise ConfigError(
            f"{model.architecture} is served with --page-size 1 only, not {args.page_size}"
        )
    draft = find_config(args.draft) if args.draft else None
    specs = model.specs + (_draft_specs(draft, flags) if draft else ())
    chunk = 8192 if args.chunked_prefill_size is None else args.chunked_prefill_size
    budget = _budget(args, found, draft)
    sized = size_arena(
        specs,
        arena_bytes=budget.arena_bytes,
        page_tokens=args.page_size,
        window=model.kinds.window_policy,
        chunk_tokens=chunk,
    )
    kernel_notes = _kernel_notes(args, model, sized)
    lengths = _lengths(args, model, chunk)
    scene = Scene(
        specs=specs,
        stock=model.stock,
        total_bytes=budget.arena_bytes,
        page_tokens=args.page_size,
        lengths=lengths,
        state_slots=model.family.state_slots,
        stock_specs=model.stock_specs + specs[len(model.specs) :],
        side_cache_bytes=_SIDE_CACHE_BYTES if model.kinds.embedding is not None else 0,
    )
    return Report(
        found=found,
        model=model,
        flags=flags,
        sized=sized,
        lengths=lengths,
        capacities=compare(sized, scene),
        budget=budget,
        command=_command(args, found, model),
        notes=(*_notes(found, model, sized, lengths, draft), *kernel_notes),
    )


def _count(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _whole(text: str) -> int:
    """A number of tokens or ranks."""
    try:
        number = int(text) if len(text) <= _MOST_DIGITS else None
    except ValueError:
        number = None
    if number is None:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a whole number of at most {_MOST_DIGITS} digits"
        )
    return number


def _draft_specs(draft: FoundConfig, flags: ServeFlags) -> tuple[KindSpec, ...]:
    specs = read_model(draft.config, flags, quant=draft.quant).specs
    return tuple(replace(spec, name=f"draft:{spec.name}") for spec in specs)


def _kernel_notes(
    args: argparse.Namespace, model: StoredModel, sized: SizedArena
) -> tuple[str, ...]:
    """What a server would say of its kernels on a GPU.

    Raises:
        ConfigError: the GPU and the backend are given, and they do not serve the plan.
    """
    if args.gpu is not None and args.attention_backend is None:
        raise ConfigError(f"--gpu {args.gpu} is for --attention-backend: give both, or neither")
    problem = state_problem(sized.plan, model.family.state_kernels)
    notes = [] if problem is None else [f"refused on a GPU: {problem}"]
    if args.attention_backend is None:
        return tuple(notes)
    for gpu in EVERY_GPU if args.gpu is None else (args.gpu,):
        backend = args.attention_backend
        use = AttentionUse(prefill=backend, decode=backend, gpu=gpu)
        problems = attention_problems(sized.plan, use)
        if problems and args.gpu is not None:
            raise ConfigError("\n".join(problems))
        notes += [f"refused on {gpu}: {said}" for said in problems]
        if not problems:
            notes += attention_warnings(sized.plan, use, sized.longest_request_tokens)
    return tuple(notes)


def _lengths(args: argparse.Namespace, model: StoredModel, chunk: int) -> Lengths:
    if args.image_tokens is not None and not model.kinds.cross:
        raise ConfigError(
            f"--image-tokens is for models with layers that read images alone; in "
            f"{model.architecture} images are part of the prompt: count them in --prompt-tokens"
        )
    return Lengths(
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        image_tokens=model.image_tokens if args.image_tokens is None else args.image_tokens,
        chunk_tokens=chunk if chunk > 0 else None,
    )


def _budget(args: argparse.Namespace, found: FoundConfig, draft: FoundConfig | None) -> Budget:
    """``--kv`` as it is, or what weights leave of ``--memory``."""
    if args.kv is not None:
        return Budget(arena_bytes=args.kv)
    memory = _USUAL_MEMORY_BYTES if args.memory is None else args.memory
    if not 0 < args.mem_fraction_static <= 1:
        raise ConfigError(f"--mem-fraction-static {args.mem_fraction_static} is not in (0, 1]")
    weights, source = args.weights, "--weights"
    if weights is None:
        checkpoints = [found] if draft is None else [found, draft]
        for checkpoint in checkpoints:
            if checkpoint.weights_bytes is None:
                raise ConfigError(
                    f"the weights of {printable(checkpoint.name)} are not known: "
                    f"{checkpoint.weights_from}. Give --weights SIZE, or --kv SIZE instead of "
                    "--memory"
                )
        weights = sum(checkpoint.weights_bytes or 0 for checkpoint in checkpoints)
        source = " + ".join(checkpoint.weights_from for checkpoint in checkpoints)
    static = int(memory * args.mem_fraction_static)
    left = static - -(-weights // args.tp)
    if left <= 0:
        raise ConfigError(
            f"--memory {format_bytes(memory)} at --mem-fraction-static "
            f"{args.mem_fraction_static} is {format_bytes(static)}, and the weights take "
            f"{format_bytes(weights / args.tp)} per GPU ({source}): raise --tp or --memory"
        )
    derived = (
        f"{format_bytes(memory)} * {args.mem_fraction_static} (--mem-fraction-static) - "
        f"{format_bytes(weights / args.tp)} of weights ({source}"
        f"{f', over {args.tp} GPUs' if args.tp > 1 else ''})"
    )
    return Budget(arena_bytes=left, derived=derived)


def _command(args: argparse.Namespace, found: FoundConfig, model: StoredModel) -> str:
    words = []
    if args.mamba_conv_dtype is not None:
        words.append(f"SGLANG_MAMBA_CONV_DTYPE={args.mamba_conv_dtype}")
    words += ["sglang", "serve", "--model-path", printable(shlex.quote(found.model_path))]
    words += ["--radix-cache-backend", "jenga"]
    if args.kv is not None:
        words += ["--jenga-arena-size", _exact_size(args.kv)]
    else:
        words += ["--mem-fraction-static", str(args.mem_fraction_static)]
    if args.page_size != 1 or model.family.page_one:
        words += ["--page-size", str(args.page_size)]
    for flag, value, usual in (
        ("--tp", args.tp, 1),
        ("--dtype", args.dtype, "auto"),
        ("--kv-cache-dtype", args.kv_cache_dtype, "auto"),
        ("--chunked-prefill-size", args.chunked_prefill_size, None),
        ("--attention-backend", args.attention_backend, None),
    ):
        if value != usual:
            words += [flag, str(value)]
    if args.mamba_ssm_dtype is not None:
        words += ["--mamba-ssm-dtype", args.mamba_ssm_dtype]
    else:
        words += found.flags
    if args.enable_multimodal:
        words.append("--enable-multimodal")
    return " ".join(words)


def _exact_size(num_bytes: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if num_bytes % 2**power == 0:
            return f"{num_bytes >> power}{unit}"
    return str(num_bytes)


def _notes(
    found: FoundConfig,
    model: StoredModel,
    sized: SizedArena,
    lengths: Lengths,
    draft: FoundConfig | None,
) -> tuple[str, ...]:
    notes = [note for note in (found.note, model.note) if note]
    if draft is not None:
        notes.append(
            "a jenga server refuses speculation today, so the command leaves the draft model out; "
            "its bytes are planned as kinds of the same arena"
        )
    if lengths.total_tokens > sized.longest_request_tokens and not model.kinds.cross:
        notes.append(
            f"a request of {lengths.total_tokens:,} tokens is refused: the longest that always "
            f"fits alone has {sized.longest_request_tokens:,}"
        )
    return tuple(notes)
