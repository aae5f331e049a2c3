# SPDX-License-Identifier: Apache-2.0
"""Claims about kinds read from a configuration; tests/unit compares them with built models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.core.catalog import CATALOG, model_kinds
from sglang_jenga.core.configs.families import BY_ARCHITECTURE
from sglang_jenga.core.configs.find import find_config
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import ServeFlags, StoredModel, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.policies import Chunked, Policy, Window

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
GEMMA3 = {
    **LLAMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 64,
    "head_dim": 32,
}


def read(config: dict[str, Any], **flags: Any) -> StoredModel:
    return read_model(config, ServeFlags(**flags))


def layers(stored: StoredModel) -> dict[str, list[int]]:
    return {s.name: list(dict.fromkeys(r.layer_id for r in s.rows)) for s in stored.specs}


# ---- published models ----------------------------------------------------------------------------


def as_sglang_counts(policy: Policy) -> Policy:
    """The catalogue's windows include the current token, SGLang's do not."""
    return Window(window_tokens=policy.window_tokens - 1) if isinstance(policy, Window) else policy


@pytest.mark.parametrize("name", CATALOG)
def test_every_model_of_the_catalogue_has_a_configuration_with_the_same_rows(name: str) -> None:
    found = read_model(PUBLISHED[name].config).specs
    for spec, known in zip(found, model_kinds(name), strict=True):
        assert spec.policy == as_sglang_counts(known.policy)
        assert [(r.layer_id, r.part, r.row_bytes) for r in spec.rows] == [
            (r.layer_id, r.part, r.row_bytes) for r in known.rows
        ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_byte_of_kv_halves_attention_and_leaves_states(name: str) -> None:
    two = read(dict(PUBLISHED[name].config)).specs
    one = read(dict(PUBLISHED[name].config), kv_cache_dtype="fp8_e4m3").specs
    for spec, small in zip(two, one, strict=True):
        divisor = 2 if spec.name in ("full", "window", "cross") else 1
        assert small.payload_bytes * divisor == spec.payload_bytes


@pytest.mark.parametrize("name", PUBLISHED)
def test_two_ranks_hold_half_each(name: str) -> None:
    whole, half = (read(dict(PUBLISHED[name].config), tp=tp).specs for tp in (1, 2))
    for spec, part in zip(whole, half, strict=True):
        if spec.name == "state":  # a single group of states is copied to both
            assert spec.payload_bytes / 2 <= part.payload_bytes < 0.6 * spec.payload_bytes
        elif spec.name == "vision":
            assert part.payload_bytes == spec.payload_bytes
        else:
            assert part.payload_bytes * 2 == spec.payload_bytes


def test_heads_are_copied_below_one_per_rank() -> None:
    sizes = [read(LLAMA, tp=tp).specs[0].payload_bytes for tp in (1, 2, 4, 8)]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 4, sizes[0] // 4]


# ---- layers --------------------------------------------------------------------------------------


def test_windows_leave_out_the_current_token() -> None:
    stored = read({**GEMMA3, "layer_types": ["sliding_attention", "full_attention"] * 2})
    assert stored.specs[1].policy == Window(window_tokens=63)
    assert layers(stored) == {"full": [1, 3], "window": [0, 2]}


def test_a_period_stands_in_for_layer_types() -> None:
    stored = read({**GEMMA3, "num_hidden_layers": 8})
    assert layers(stored) == {"full": [5], "window": [0, 1, 2, 3, 4, 6, 7]}
    other = read({**GEMMA3, "num_hidden_layers": 8, "sliding_window_pattern": 4})
    assert layers(other)["full"] == [3, 7]


def test_a_text_model_may_lie_inside() -> None:
    text = {k: v for k, v in GEMMA3.items() if k not in ("architectures", "torch_dtype")}
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "text_config": {**text, "num_hidden_layers": 8},
        "vision_config": {},
    }
    stored = read(outer)
    assert stored.kv.name == "bfloat16" and set(layers(stored)) == {"full", "window"}
    assert set(layers(read(outer, enable_multimodal=True))) == {"full", "window", "vision"}


def test_chunks_and_shared_layers_and_heads_of_their_own() -> None:
    scout = read(dict(PUBLISHED["llama4-scout"].config))
    assert scout.specs[1].policy == Chunked(chunk_tokens=8192)
    e4b = read(dict(PUBLISHED["gemma4-e4b"].config))
    assert [spec.num_layers for spec in e4b.specs] == [4, 20], "18 of 42 layers store nothing"


def test_a_picture_of_mllama_takes_all_tiles() -> None:
    assert read(dict(PUBLISHED["llama32-11b-vision"].config)).image_tokens == 4 * 1601


# ---- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "flags", "stored_in"),
    [
        ({}, {}, "bfloat16"),
        ({"torch_dtype": "float32"}, {}, "float16"),
        ({"torch_dtype": None}, {}, "float16"),
        ({"torch_dtype": "float32", "model_type": "gemma3_text"}, {}, "bfloat16"),
        ({"torch_dtype": "float32"}, {"dtype": "float32"}, "float32"),
        ({"dtype": "float16", "torch_dtype": None}, {}, "float16"),
        ({}, {"kv_cache_dtype": "fp8_e5m2"}, "float8_e5m2"),
        ({}, {"kv_cache_dtype": "bf16", "dtype": "float32"}, "bfloat16"),
    ],
)
def test_kv_is_stored_in_what_sglang_chooses(
    config: dict[str, Any], flags: dict[str, Any], stored_in: str
) -> None:
    assert read({**LLAMA, **config}, **flags).kv.name == stored_in


def test_states_are_float32_unless_the_configuration_or_a_flag_says_otherwise() -> None:
    config = dict(PUBLISHED["qwen3-next-80b"].config)
    half = read(config).specs[1].payload_bytes
    assert read(config, mamba_ssm_dtype="float32").specs[1].payload_bytes > 1.9 * half
    del config["mamba_ssm_dtype"]
    assert read(config).specs[1] == read(config, mamba_ssm_dtype="float32").specs[1]
    assert read(config, mamba_ssm_dtype="bfloat16").specs[1].payload_bytes == half


def test_convolutions_follow_their_variable_and_jambas_the_checkpoint() -> None:
    def conv_bytes(name: str, **flags: Any) -> int:
        spec = read(dict(PUBLISHED[name].config) | {"torch_dtype": "float32"}, **flags).specs[1]
        return next(row.itemsize_bytes for row in spec.rows if row.part == "conv0")

    assert conv_bytes("qwen3-next-80b") == 2
    assert conv_bytes("granite-4.0-h-small", mamba_conv_dtype="float32") == 4
    assert conv_bytes("jamba-v0.1") == 4
    assert conv_bytes("jamba-v0.1", mamba_conv_dtype="bfloat16") == 2


# ---- refusals ------------------------------------------------------------------------------------


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


def gemma4(**text: Any) -> dict[str, Any]:
    config = PUBLISHED["gemma4-e4b"].config
    return {**config, "text_config": {**config["text_config"], **text}}


def mllama(crossing: object) -> dict[str, Any]:
    config = PUBLISHED["llama32-11b-vision"].config
    text = {**config["text_config"], "cross_attention_layers": crossing}
    return {**config, "text_config": text}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (without(LLAMA, "architectures"), {}, "has no 'architectures'.*add it"),
    ({**LLAMA, "architectures": ["A", "B"]}, {}, r"several 'architectures' \['A', 'B'\]"),
    ({**LLAMA, "architectures": ["LlamaForCausalLMX"]}, {}, "Did you mean LlamaForCausalLM"),
    ({**LLAMA, "architectures": ["DeepX"], "kv_lora_rank": 512}, {}, "'kv_lora_rank'.*no kind"),
    ({**LLAMA, "architectures": ["Strange"]}, {}, "'Strange', which cannot be planned.*Known are"),
    (without(LLAMA, "num_hidden_layers"), {}, "LlamaForCausalLM: .* no 'num_hidden_layers'"),
    (without(LLAMA, "hidden_size"), {}, "no 'hidden_size'"),
    ({**LLAMA, "num_hidden_layers": "4"}, {}, "'num_hidden_layers' is '4', expected a whole"),
    ({**LLAMA, "num_key_value_heads": True}, {}, "'num_key_value_heads' is True"),
    ({**LLAMA, "hidden_size": 250}, {}, "250 is no multiple of num_attention_heads 8"),
    (LLAMA, {"tp": 3}, "num_key_value_heads 4 does not split over --tp 3"),
    (LLAMA, {"tp": 6}, "does not split over --tp 6"),
    (LLAMA, {"tp": 16}, "num_attention_heads 8 does not split over --tp 16"),
    (dict(PUBLISHED["llama31-8b"].config), {"tp": 24}, "num_attention_heads 32 .* --tp 24"),
    (dict(PUBLISHED["llama31-8b"].config), {"tp": 64}, "num_attention_heads 32 .* --tp 64"),
    ({**LLAMA, "num_key_value_heads": 3}, {}, "num_key_value_heads 3 does not divide"),
    ({**LLAMA, "num_key_value_heads": 16}, {}, "num_key_value_heads 16 does not divide"),
    ({**LLAMA, "num_hidden_layers": 10_000_000}, {}, "'num_hidden_layers' is 10000000, .* 4,096"),
    ({**LLAMA, "hidden_size": 2**40}, {}, "'hidden_size' is 1099511627776, expected at most"),
    ({**LLAMA, "num_attention_heads": -8}, {}, "'num_attention_heads' is -8"),
    ({**LLAMA, "torch_dtype": ["bfloat16"]}, {}, "'torch_dtype' is .*, expected a text"),
    ({**LLAMA, "text_config": 5}, {}, "'text_config' is 5"),
    ({**LLAMA, "architectures": [[5]]}, {}, r"'architectures' is \[\[5\]\]"),
    ({**GEMMA3, "_sliding_window_pattern": "6"}, {}, "'_sliding_window_pattern' is '6'"),
    ({**GEMMA3, "_sliding_window_pattern": 0}, {}, "'_sliding_window_pattern' is 0"),
    ({**GEMMA3, "_sliding_window_pattern": 2.5}, {}, "'_sliding_window_pattern' is 2.5"),
    ({**GEMMA3, "layer_types": [[3]] * 4}, {}, r"'layer_types' has entries \[\[3\]\]"),
    *(
        (gemma4(num_kv_shared_layers=value), {}, f"'num_kv_shared_layers' .*{value}")
        for value in ("4", -4, 2.0, 42)
    ),
    (gemma4(attention_k_eq_v="yes"), {}, "'attention_k_eq_v' is 'yes', expected true or false"),
    (mllama([[3]]), {}, r"'cross_attention_layers' is \[\[3\]\], expected the numbers"),
    (mllama([3, 40]), {}, "'cross_attention_layers' is .* of the 40 layers"),
    (mllama(list(range(40))), {}, "'cross_attention_layers' is .* not all"),
    (
        {**PUBLISHED["nemotron-h-8b"].config, "hybrid_override_pattern": "MMM"},
        {},
        "'hybrid_override_pattern' leaves no attention layer among 3",
    ),
    (
        {**PUBLISHED["nemotron-h-8b"].config, "hybrid_override_pattern": "M*" * 5000},
        {},
        "'hybrid_override_pattern' has 10,000 entries, at most 4,096",
    ),
    (
        {**PUBLISHED["qwen3-next-80b"].config, "full_attention_interval": 99},
        {},
        "'full_attention_interval' leaves no attention layer among 48",
    ),
    (
        {**PUBLISHED["jamba-v0.1"].config, "attn_layer_offset": 8},
        {},
        "'attn_layer_period' leaves no attention layer",
    ),
    (
        {**PUBLISHED["falcon-h1-7b"].config, "mamba_d_ssm": 500},
        {},
        r"mamba_n_heads 24 \* mamba_d_head 128 is 3072, .* 500 channels",
    ),
    (
        {**PUBLISHED["falcon-h1-7b"].config, "mamba_n_groups": 5},
        {},
        "mamba_n_groups 5 does not divide mamba_n_heads 24",
    ),
    ({**PUBLISHED["falcon-h1-7b"].config, "mamba_d_conv": 1}, {}, "'mamba_d_conv' is 1"),
    (LLAMA, {"dtype": "int8"}, "--dtype 'int8' is unknown: one of"),
    ({**LLAMA, "torch_dtype": "float8"}, {}, "'torch_dtype' 'float8' is unknown"),
    ({**GEMMA3, "layer_types": ["full_attention"]}, {}, "one entry for each of the 4.* it has 1"),
    ({**GEMMA3, "layer_types": ["odd"] * 4}, {}, r"entries \['odd'\], known are"),
    ({**GEMMA3, "layer_types": ["sliding_attention"] * 4}, {}, "like every other layer"),
    (
        {**LLAMA, "architectures": ["GptOssForCausalLM"]},
        {},
        "GptOssForCausalLM: .* no 'layer_types', so which layers",
    ),
    (
        {**LLAMA, "architectures": ["MistralForCausalLM"]},  # the class means 4,096 by nothing
        {},
        r"window\(4,095\) attention like every other layer",
    ),
    (
        {**LLAMA, "architectures": ["Exaone4ForCausalLM"], "sliding_window_pattern": 4},
        {},
        "'sliding_window_pattern' is 4, and SGLang reads a text such as 'LLLG'",
    ),
    (
        {**LLAMA, "architectures": ["Gemma4ForCausalLM"]},
        {},
        "no 'swa_head_dim'.*add them",
    ),
    (
        {**LLAMA, "architectures": ["MllamaForConditionalGeneration"]},
        {},
        "'cross_attention_layers' is None, expected the numbers",
    ),
    (dict(PUBLISHED["llama32-11b-vision"].config), {"tp": 16}, "is below --tp 16.*copy no heads"),
    (dict(PUBLISHED["nemotron-h-8b"].config), {"tp": 16}, "8 groups of states do not split"),
    (
        {**PUBLISHED["qwen3-next-80b"].config, "layer_types": ["full_attention"] * 48},
        {},
        "'layer_types' and 'full_attention_interval' 4 disagree",
    ),
]


@pytest.mark.parametrize(("config", "flags", "message"), REFUSED)
def test_what_is_missing_or_odd_is_refused_by_name(
    config: dict[str, Any], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(config, **flags)


@pytest.mark.parametrize("architecture", BY_ARCHITECTURE)
def test_an_empty_configuration_is_refused_by_its_first_missing_field(architecture: str) -> None:
    with pytest.raises(ConfigError, match=rf"{architecture}: .*'\w+'"):
        read({"architectures": [architecture], "torch_dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("DeepseekV4ForCausalLM", {}),
        ("DeepseekV4ForCausalLM", {"compress_ratios": [0, 4, 128]}),
        ("MiniMaxM3SparseForConditionalGeneration", {}),
        ("Qwen4ExpForConditionalGeneration", {"indexer_n_heads": 8}),
        ("SomethingNewForCausalLM", {"index_topk": 2048}),
    ],
)
def test_models_with_rows_beside_their_kv_are_refused_by_name(
    architecture: str, fields: dict[str, Any]
) -> None:
    config = {**LLAMA, "architectures": [architecture], **fields}
    with pytest.raises(ConfigError, match=rf"'{architecture}' stores .*no kind of the arena"):
        read(config)
    inner = {"architectures": [architecture], "text_config": {**LLAMA, **fields}}
    with pytest.raises(ConfigError, match="no kind of the arena"):
        read(inner)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("LlamaForCausalLMX", "LlamaForCausalLM"),
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("GptOss_ForCausalLM", "GptOssForCausalLM"),
        ("MsitralForCausalLM", "MistralForCausalLM"),
        ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        ("MiniMaxM2ForCausalLM", None),
        ("Gemma3nForConditionalGeneration", None),
        ("Qwen3VLForConditionalGeneration", None),
        ("Qwen3_5MoeForConditionalGeneration", None),
        ("PixtralForConditionalGeneration", None),
        ("LlavaForConditionalGeneration", None),
        ("Qwen4NextForCausalLM", None),
    ],
)
def test_only_another_spelling_of_an_architecture_is_suggested(
    written: str, meant: str | None
) -> None:
    with pytest.raises(ConfigError, match="cannot be planned") as refused:
        read({**LLAMA, "architectures": [written]})
    said = str(refused.value)
    assert (f"Did you mean {meant}" in said) if meant else ("Did you mean" not in said)


def test_a_granite_of_attention_alone_has_one_kind() -> None:
    config = {**PUBLISHED["granite-4.0-h-small"].config, "layer_types": ["attention"] * 40}
    stored = read(config)
    assert set(layers(stored)) == {"full"} and stored.stock == "all-full"


def test_nulls_of_later_mistrals_mean_no_window() -> None:
    config = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": None}
    assert set(layers(read(config))) == {"full"}


# ---- finding it ----------------------------------------------------------------------------------


def test_a_file_a_directory_and_a_name_are_found(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    (directory / "model.safetensors").write_bytes(b"x" * 100)
    for text in (str(directory), str(directory / "config.json")):
        found = find_config(text)
        assert (found.name, found.model_path) == ("my-model", str(directory))
        assert found.config == LLAMA and found.weights_bytes == 100
    index = {"metadata": {"total_size": 777}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_config(str(directory)).weights_bytes == 777, "shards may not be there yet"
    assert find_config("gemma3-27b").model_path == "google/gemma-3-27b-it"


@pytest.mark.parametrize(
    "index",
    [[], {"metadata": None}, {"metadata": []}, {}]
    + [{"metadata": {"total_size": size}} for size in (1.5e9, 16e9, "7", -7, 0, None, 10**30)],
)
def test_an_odd_index_of_weights_is_said_and_the_files_count(tmp_path: Path, index: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = find_config(str(tmp_path))
    assert found.weights_bytes is None
    assert "model.safetensors.index.json" in found.weights_from
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 100)
    found = find_config(str(tmp_path))
    assert found.weights_bytes == 100 and "1 safetensors file; " in found.weights_from


def test_what_is_not_found_is_answered_with_what_is_like_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"try .*gemma3-27b"):
        find_config("gemma-3-27b")
    with pytest.raises(ConfigError, match=r"a directory without config\.json"):
        find_config(str(tmp_path))
    broken = tmp_path / "config.json"
    for text, message in (("{", "cannot be read as JSON"), ("[]", "is not a JSON object")):
        broken.write_text(text)
        with pytest.raises(ConfigError, match=message):
            find_config(str(broken))
