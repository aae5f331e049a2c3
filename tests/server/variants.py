# SPDX-License-Identifier: Apache-2.0
"""Which servers are started for a family, and which scenarios each of them plays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from server import adapter
from server.examples import environment
from server.launch import ServerSpec
from server.run import ENDS_ONLY, Setting
from sglang_jenga.tiny import IMAGE_FAMILIES

_PREFIXES = ("uncached", "prefill_hit", "decode_hit", "branching", "multi_turn")
_LOAD = ("concurrent_8", "concurrent_32")
_ASKING = ("streaming", "parallel_sampling", "prompt_logprobs", "constraints", "sessions")
_INTERRUPTED = ("abort_prefill", "abort_decode", "flush_under_load", "too_long")
EVERYTHING = (*_PREFIXES, *_LOAD, *_ASKING, *_INTERRUPTED)
UNDER_PRESSURE = ("pressure", "multi_turn", "abort_decode", "flush_under_load", "too_long")

#: Tokens of SGLang's own pools whose bytes the roomy and the tight arenas take.
ROOMY_TOKENS = 8192
TIGHT_TOKENS: Mapping[str, int] = {"jamba": 400, "mllama": 450}
TIGHT_TOKENS_DEFAULT = 700


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One jenga server. ``reference`` names the stock server that it must agree with."""

    name: str
    scenarios: tuple[str, ...]
    setting: Setting = field(default_factory=Setting)
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    reference: str = "plain"
    states_only: bool = False


def _page(tokens: int) -> tuple[str, ...]:
    return ("--page-size", str(tokens))


_NO_OVERLAP = ("--disable-overlap-schedule",)
_NO_RADIX = ("--disable-radix-cache",)
#: Admit more than will fit, so that requests are retracted.
_OPTIMISTIC = ("--schedule-conservativeness", "0.05")
_SESSIONS = ("--enable-streaming-session",)
_RETRACT = {"SGLANG_TEST_RETRACT": "1"}
#: Else SGLang rounds convolution states to bfloat16 between two steps, and answers depend on how a
#: prompt was cut.
_STATE_ENV = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}

VARIANTS: tuple[Variant, ...] = (
    Variant(name="plain", scenarios=EVERYTHING),
    Variant(
        name="page16",
        scenarios=(*EVERYTHING, "streaming_sessions"),
        setting=Setting(page_tokens=16),
        flags=(*_page(16), *_SESSIONS),
    ),
    Variant(
        name="no_overlap",
        scenarios=(*_PREFIXES, *_LOAD, "streaming", "abort_prefill", "abort_decode",
                   "streaming_sessions"),
        flags=(*_NO_OVERLAP, *_SESSIONS),
    ),
    Variant(
        name="tight",
        scenarios=UNDER_PRESSURE,
        setting=Setting(roomy=False),
        flags=_OPTIMISTIC,
    ),
    Variant(
        name="tight_page16_no_overlap",
        scenarios=UNDER_PRESSURE,
        setting=Setting(page_tokens=16, roomy=False),
        flags=(*_page(16), *_NO_OVERLAP, *_OPTIMISTIC),
    ),
    Variant(
        name="tight_no_radix",
        scenarios=(*UNDER_PRESSURE, "uncached", "parallel_sampling", "streaming"),
        setting=Setting(radix=False, roomy=False),
        flags=(*_NO_RADIX, *_OPTIMISTIC),
    ),
    Variant(
        name="tight_mixed_chunk",
        scenarios=UNDER_PRESSURE,
        setting=Setting(roomy=False),
        flags=("--enable-mixed-chunk", *_OPTIMISTIC),
    ),
    Variant(
        name="retract",
        scenarios=("forced_retraction", "decode_hit", "concurrent_8"),
        setting=Setting(),
        env=_RETRACT,
    ),
    Variant(
        name="retract_page16_no_overlap",
        scenarios=("forced_retraction", "decode_hit", "concurrent_8"),
        setting=Setting(page_tokens=16),
        flags=(*_page(16), *_NO_OVERLAP),
        env=_RETRACT,
    ),
    Variant(
        name="lora",
        scenarios=("lora", "concurrent_8"),
        setting=Setting(lora=adapter.NAME),
        reference="lora",
    ),
    Variant(
        name="tensor_parallel",
        scenarios=(*UNDER_PRESSURE, "concurrent_8"),
        setting=Setting(roomy=False),
        flags=_OPTIMISTIC,
        reference="tensor_parallel",
    ),
    Variant(
        name="no_buffer",
        scenarios=(*_PREFIXES, *_LOAD, "abort_decode", "flush_under_load"),
        flags=("--mamba-radix-cache-strategy", "no_buffer", *_NO_OVERLAP),
        states_only=True,
    ),
)  # fmt: skip

#: Families with recurrent states: the grid of their prefill snapshots, which is the kernel's chunk.
STATE_GRID_TOKENS: Mapping[str, int] = {
    "granite_hybrid": 32,
    "falcon_h1": 32,
    "nemotron_h": 64,
    "qwen3_next": 64,
    "lfm2": ENDS_ONLY,
    "jamba": 64,
}
#: States that SGLang's own pool holds, whose bytes the arena takes too.
ROOMY_STATES, TIGHT_STATES_DEFAULT = 64, 7
TIGHT_STATES: Mapping[str, int] = {"jamba": 4}
#: One attention layer in eight: a state weighs as much as the longest prompt of a test.
MOSTLY_STATES = ("jamba",)


#: Families that take images -> variant -> what is asked of them.
_IMAGES = ("images_hit", "images_branch", "images_multi_turn", "images_crowd", "images_abort")
_IMAGES_UNDER_PRESSURE = ("images_crowd", "images_hit", "images_abort")
IMAGE_SCENARIOS_OF: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # Prompts are computed in one go, so that none is aborted between chunks; pages are one token.
    "mllama": {
        "plain": (*_IMAGES, *(s for s in EVERYTHING if s != "abort_prefill")),
        "no_overlap": (*_IMAGES, "concurrent_8"),
        "tight": (*_IMAGES_UNDER_PRESSURE, *UNDER_PRESSURE),
        "tight_no_radix": (*_IMAGES_UNDER_PRESSURE, "pressure"),
        "retract": ("images_crowd", "images_hit", "forced_retraction"),
        "tensor_parallel": (*_IMAGES_UNDER_PRESSURE, "concurrent_8"),
    },
    # Its text is that of "gemma3".
    "gemma3_vision": {
        "plain": (*_IMAGES, "uncached", "prefill_hit", "multi_turn", "abort_prefill"),
        "page16": _IMAGES,
        "no_overlap": _IMAGES,
        "tight": (*_IMAGES_UNDER_PRESSURE, "pressure", "flush_under_load"),
        "tight_page16_no_overlap": (*_IMAGES_UNDER_PRESSURE, "pressure"),
        "tight_no_radix": _IMAGES_UNDER_PRESSURE,
        "retract": ("images_crowd", "images_hit"),
        "tensor_parallel": _IMAGES_UNDER_PRESSURE,
    },
}
IMAGES_LEAD = ("mllama",)
#: Flags that a family needs on every server.
_FAMILY_FLAGS: Mapping[str, tuple[str, ...]] = {"gemma3_vision": ("--enable-multimodal",)}
#: SGLang's cache of embeddings, whose bytes the arena takes too, would be most of a tight one.
_SMALL_SIDE_CACHE = {"SGLANG_VLM_CACHE_SIZE_MB": "1"}


def family_flags(family: str) -> tuple[str, ...]:
    """Flags that a family needs on every server."""
    return _FAMILY_FLAGS.get(family, ())


def variants_of(family: str) -> tuple[Variant, ...]:
    """The variants that make sense for a family, with what its kinds need.

    States that are cached at the ends of requests only need pages of one token.
    """
    if family in IMAGE_FAMILIES:
        asked = IMAGE_SCENARIOS_OF[family]
        return tuple(
            replace(
                v,
                scenarios=asked[v.name],
                setting=replace(v.setting, images_lead=family in IMAGES_LEAD),
                env={**v.env, **_SMALL_SIDE_CACHE},
            )
            for v in VARIANTS
            if v.name in asked
        )
    grid = STATE_GRID_TOKENS.get(family)
    if grid is None:
        return tuple(v for v in VARIANTS if not v.states_only)
    fitting = (v for v in VARIANTS if grid != ENDS_ONLY or v.setting.page_tokens == 1)
    tight_states = TIGHT_STATES.get(family, TIGHT_STATES_DEFAULT)
    outgrown = family not in MOSTLY_STATES
    return tuple(_with_states(v, grid, tight_states, outgrown) for v in fitting)


def _with_states(v: Variant, grid: int, tight_states: int, outgrown: bool) -> Variant:
    states = ROOMY_STATES if v.setting.roomy else tight_states
    return replace(
        v,
        setting=replace(
            v.setting,
            state_grid_tokens=ENDS_ONLY if v.states_only else grid,
            outgrown=outgrown,
        ),
        flags=(*v.flags, "--max-mamba-cache-size", str(states)),
        env={**v.env, **_STATE_ENV},
    )


def variant(name: str, family: str) -> Variant:
    return next(v for v in variants_of(family) if v.name == name)


def _reference_flags(reference: str, adapter_path: Path) -> tuple[str, ...]:
    """Flags that change what is computed, so that both servers need them."""
    if reference == "lora":
        return (
            *("--enable-lora", "--lora-paths", f"{adapter.NAME}={adapter_path}"),
            *("--lora-backend", "torch_native", "--max-loras-per-batch", "2"),
        )
    if reference == "tensor_parallel":
        return ("--tp-size", "2")
    return ()


def _cores() -> str:
    """One core for each of two ranks; SGLang asks for it where there is one NUMA node."""
    cores = sorted(os.sched_getaffinity(0))
    return f"{cores[0]}|{cores[1 % len(cores)]}"


def _env(reference: str) -> dict[str, str]:
    if reference == "tensor_parallel":
        return {"SGLANG_CPU_OMP_THREADS_BIND": _cores()}
    return {}


#: SGLang lacks these architectures, or answers some batches wrongly (mllama): their stock servers
#: get the model file, and only that.
_MODEL_FILES = {
    family: {"SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_jenga.models"}
    for family in ("ministral", "jamba", "mllama")
}


def stock_spec(reference: str, family: str, checkpoint: Path, adapter_path: Path) -> ServerSpec:
    """The stock server whose answers are recorded: no pressure, SGLang's default settings."""
    has_states = family in STATE_GRID_TOKENS
    return ServerSpec(
        model_path=checkpoint,
        jenga=False,
        flags=(
            "--max-total-tokens", str(2 * ROOMY_TOKENS),
            *_FAMILY_FLAGS.get(family, ()),
            *_reference_flags(reference, adapter_path),
            *(("--max-mamba-cache-size", str(ROOMY_STATES)) if has_states else ()),
        ),
        env={
            **_env(reference),
            **_MODEL_FILES.get(family, {}),
            **environment(family),
            **(_STATE_ENV if has_states else {}),
        },
    )  # fmt: skip


def jenga_spec(v: Variant, family: str, checkpoint: Path, adapter_path: Path) -> ServerSpec:
    tight = TIGHT_TOKENS.get(family, TIGHT_TOKENS_DEFAULT)
    return ServerSpec(
        model_path=checkpoint,
        jenga=True,
        flags=(
            "--max-total-tokens", str(ROOMY_TOKENS if v.setting.roomy else tight),
            "--chunked-prefill-size", "128" if v.setting.roomy else "64",
            *_reference_flags(v.reference, adapter_path),
            *_FAMILY_FLAGS.get(family, ()),
            *v.flags,
        ),
        env={**_env(v.reference), **environment(family), **v.env},
    )  # fmt: skip
