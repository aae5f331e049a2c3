# SPDX-License-Identifier: Apache-2.0
"""Whatever a config.json says, ``plan`` answers with a plan or with a refusal that names a field.

Published configurations are mutated: other types, signs, huge numbers, nulls, fields left out,
nesting. The runs are the same each time.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_jenga.cli.__main__ import main
from sglang_jenga.core.configs.families import BY_ARCHITECTURE
from sglang_jenga.core.configs.published import PUBLISHED

#: A field in quotes, a flag, or bare as in "hidden_size 250": what a user can look for.
NAMED = re.compile(r"'[\w.]+'|\b\w+_\w+\b|--\w+|is not a JSON object|nests more than")
MOST_SECONDS = 5.0
QUANT = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
}
CONFIGS: list[dict[str, Any]] = [
    *(json.loads(json.dumps(model.config)) for model in PUBLISHED.values()),
    {**json.loads(json.dumps(PUBLISHED["llama31-8b"].config)), "quantization_config": QUANT},
    {"architectures": ["DeepseekV4ForCausalLM"], "compress_ratios": [0, 4], "index_topk": 512},
    {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512},
]

numbers = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 64, 500, 10_000_000, 2**31, 2**63, -(10**30), 10**300]
)
odd = (
    numbers
    | st.sampled_from([None, True, False, 2.5, 6.0, -0.0, float("inf"), float("nan"), 1e308])
    | st.sampled_from(["", "4", "6", "auto", "float8", "FP8", "\x1b[2J\x1b]0;X\x07", "x" * 500])
    | st.sampled_from([[], {}, [[3]], [None], ["M"] * 500, {"a": {"b": []}}, [0] * 9])
)
#: Fields that no published configuration needs to have for a mutation to put them there.
ADDED = sorted(
    {name for family in BY_ARCHITECTURE.values() for name in family.defaults}
    | {"_sliding_window_pattern", "num_kv_shared_layers", "layer_types", "full_attn_idxs"}
    | {"quantization_config", "compression_config", "dtype", "text_config", "vision_config"}
    | {"swa_head_dim", "kv_lora_rank", "mamba_ssm_dtype", "attention_k_eq_v", "model_type"}
)

WAYS = ("change", "change", "change", "scale", "remove", "add", "nest")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``value``; of a list the first entry stands for all."""
    keys = list(value) if isinstance(value, dict) else range(min(1, len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(config))
        what = draw(st.sampled_from(WAYS))
        if what == "add" or not found:
            config[draw(st.sampled_from(ADDED))] = copy.deepcopy(draw(odd))
            continue
        container, key = found[draw(st.integers(0, len(found) - 1))]
        if what == "remove":
            del container[key]
        elif what == "nest":
            for _ in range(draw(st.sampled_from([1, 70]))):
                container[key] = [container[key]]
        elif what == "scale" and type(container[key]) is int:
            container[key] *= draw(st.sampled_from([-1, 2, 3, 1000, 10**6]))
        else:
            container[key] = copy.deepcopy(draw(odd))
    return config


def plan(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """Exit status, and what was printed, of a plan of the config.json in ``folder``."""
    began = time.process_time()
    status = main(["plan", str(folder), "--kv", "40GiB", *flags])
    assert time.process_time() - began < MOST_SECONDS
    out, err = capsys.readouterr()
    for line in (out + err).splitlines():
        assert line.isprintable(), line
    return status, err


@settings(
    max_examples=500, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(config=mutated(), tp=st.sampled_from(["1", "1", "2", "8", "24"]))
def test_a_mutated_configuration_is_planned_or_refused_by_a_field(
    config: Any, tp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, said = plan(tmp_path, capsys, "--tp", tp)
    if status:
        assert status == 1 and len(said) < 1500
        assert NAMED.search(said.removeprefix("sglang-jenga plan: ")), said


@settings(
    max_examples=100, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    quant=st.recursive(
        odd | st.dictionaries(
            st.sampled_from(
                ["quantization", "quant_algo", "kv_cache_quant_algo", "kv_cache_scheme", "type",
                 "quant_method", "quantized_layers", "num_bits", "strategy"]
            ),
            odd | st.sampled_from(["FP8", "NVFP4", "MIXED_PRECISION", "modelopt", "fp8"]),
        ),
        lambda inner: st.dictionaries(st.sampled_from(["quantization", "quantized_layers"]), inner),
        max_leaves=4,
    ),
    index=odd | st.dictionaries(st.just("metadata"), odd | st.dictionaries(
        st.just("total_size"), odd)),
)  # fmt: skip
def test_mutated_files_beside_it_are_no_trouble_either(
    quant: Any, index: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["llama31-8b"].config))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quant))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    status, said = plan(tmp_path, capsys)
    assert not status or NAMED.search(said), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 5000, "nests more than 64 levels deep"),
        (b'{"a":' * 100_000, "nests more than 64 levels deep"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nests more than 64 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"a": "' + b"x" * 20_000_000 + b'"}', "has more than 16.00 MiB"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"null", "is not a JSON object"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused_by_its_name(
    text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes(text)
    status, told = plan(tmp_path, capsys)
    assert status == 1 and said in told and str(tmp_path / "config.json") in told


def test_a_byte_order_mark_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps(PUBLISHED["llama31-8b"].config).encode()
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + config)
    assert plan(tmp_path, capsys)[0] == 0
