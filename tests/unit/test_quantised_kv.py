# SPDX-License-Identifier: Apache-2.0
"""What is planned of a quantised checkpoint's K/V is what SGLang's ``auto`` makes of its files."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_jenga.cli.__main__ import main
from sglang_jenga.core.configs.quantisation import QUANT_FILE, kv_quantisation
from sglang_jenga.core.configs.read import ServeFlags, read_model
from sglang_jenga.core.errors import ConfigError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
FLOAT8 = {"num_bits": 8, "type": "float", "dynamic": False}
STATIC = {**FLOAT8, "strategy": "tensor", "symmetric": True}
LAYERS = {"a": {"quant_algo": "NVFP4", "group_size": 16}}


def nested(algorithm: str | None, kv: str | None, **more: Any) -> dict[str, Any]:
    """A hf_quant_config.json."""
    inner = {"quant_algo": algorithm, "kv_cache_quant_algo": kv, "group_size": 16, **more}
    return {"producer": {"name": "modelopt"}, "quantization": inner}


FILES: list[dict[str, Any] | None] = [
    None,
    nested("FP8", "FP8"),
    nested("FP8", None),
    nested("NVFP4", "FP8"),
    nested("NVFP4", "NVFP4"),
    nested("MIXED_PRECISION", "FP8", quantized_layers=LAYERS),
    nested("MIXED_PRECISION", "FP8", quantized_layers={"a": {"quant_algo": "FP8"}}),
    nested("INT4_AWQ", "FP8"),
    nested("MXFP8", "FP8"),
    nested(None, "FP8"),
    {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    {"quant_algo": "FP8", "kv_cache_scheme": FLOAT8},
]
STATED: list[dict[str, Any] | None] = [
    None,
    {"quant_algo": "FP8", "kv_cache_scheme": FLOAT8},
    {"quant_algo": "FP8", "kv_cache_scheme": "FP8"},
    {"quant_algo": "FP8", "kv_cache_quant_algo": "fp8", "quant_method": "modelopt"},
    {"quant_algo": "NVFP4", "kv_cache_scheme": FLOAT8, "ignore": []},
    {"quant_algo": "NVFP4", "kv_cache_scheme": "FP8", "ignore": []},
    {"quant_algo": "NVFP4", "kv_cache_scheme": {**FLOAT8, "num_bits": 4}, "ignore": []},
    {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
    {"quant_algo": "MIXED_PRECISION", "kv_cache_scheme": FLOAT8, "quantized_layers": LAYERS},
    {"quant_algo": "MXFP8", "kv_cache_scheme": FLOAT8},
    {"quant_algo": "MXFP8", "kv_cache_quant_algo": "FP8"},
    {"quant_method": "fp8", "kv_cache_quant_algo": "FP8", "activation_scheme": "dynamic"},
    {"quant_method": "fp8", "kv_cache_scheme": FLOAT8, "activation_scheme": "dynamic"},
    {"quant_method": "FP8", "activation_scheme": "dynamic"},
    {"quant_method": "compressed-tensors", "kv_cache_scheme": STATIC, "config_groups": {}},
    {"quant_method": "compressed-tensors", "kv_cache_scheme": FLOAT8, "config_groups": {}},
    {"quant_method": "modelopt_fp8", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    {"quant_method": "w8a8_fp8", "kv_cache_quant_algo": "FP8"},
    nested("FP8", "FP8"),
]


def by_sglang(config: dict[str, Any], folder: Path) -> str | None:
    """``kv_cache_quant_algo`` of the class that SGLang makes of a checkpoint's files."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.weight_utils import get_quant_config
    from transformers import PretrainedConfig

    model = SimpleNamespace(
        hf_config=PretrainedConfig(**copy.deepcopy(config)),
        model_path=str(folder),
        is_draft_model=False,
        revision=None,
    )
    model._parse_modelopt_quant_config = lambda found: ModelConfig._parse_modelopt_quant_config(
        model, found
    )
    found = ModelConfig._parse_quant_hf_config(model)
    if found is None:
        return None
    model.quantization = found["quant_method"].lower()
    load = SimpleNamespace(model_loader_extra_config=None, download_dir=None)
    return getattr(get_quant_config(model, load, {}), "kv_cache_quant_algo", None)


@pytest.mark.parametrize("place", ["quantization_config", "compression_config"])
def test_files_mean_to_the_planner_what_they_mean_to_sglang(place: str, tmp_path: Path) -> None:
    asked = 0
    for stated, file in product(STATED, FILES):
        config = LLAMA if stated is None else {**LLAMA, place: stated}
        (tmp_path / QUANT_FILE).unlink(missing_ok=True)
        if file is not None:
            (tmp_path / QUANT_FILE).write_text(json.dumps(file))
        try:
            theirs = by_sglang(config, tmp_path)
        except (ValueError, KeyError):
            continue  # SGLang does not load such a checkpoint
        ours = kv_quantisation(config, file).algorithm
        assert ((ours or "").upper() == "FP8") is ((theirs or "").upper() == "FP8"), (config, file)
        asked += 1
    assert asked > 60


def test_a_quantisation_file_beside_the_configuration_halves_the_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    sizes = []
    for file in (None, nested("FP8", "FP8")):
        if file is not None:
            (tmp_path / QUANT_FILE).write_text(json.dumps(file))
        assert main(["plan", str(tmp_path), "--kv", "1GiB", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        sizes.append((found["kv_cache_dtype"], found["kinds"][0]["slot_bytes"]))
    assert sizes == [("bfloat16", 2048), ("float8_e4m3fn", 1024)]


def test_what_is_written_and_not_followed_is_said() -> None:
    config = {**LLAMA, "quantization_config": {"quant_algo": "FP8", "kv_cache_scheme": "FP8"}}
    stored = read_model(config, quant=nested("FP8", "FP8"))
    assert stored.kv.name == "bfloat16" and "quantization_config says 'FP8' K/V" in stored.note
    assert not read_model(config, ServeFlags(kv_cache_dtype="bf16")).note
    assert not read_model(LLAMA, quant=nested("FP8", "FP8")).note


def test_a_model_whose_file_keeps_no_quantisation_is_planned_without() -> None:
    olmo = {**LLAMA, "architectures": ["Olmo3ForCausalLM"], "sliding_window": 64}
    stored = read_model(olmo, quant=nested("FP8", "FP8"))
    assert stored.kv.name == "bfloat16" and f"{QUANT_FILE} says 'FP8' K/V" in stored.note


@pytest.mark.parametrize(
    ("config", "file", "named"),
    [
        ({"quantization_config": 5}, None, "'quantization_config' is 5"),
        ({"quantization_config": {"quant_method": 5}}, None, "'quant_method' of the quantisation"),
        ({}, {"quantization": {"quant_algo": ["FP8"]}}, "'quant_algo' of the quantisation"),
        ({}, nested("FP8", 8), "'kv_cache_quant_algo' of the quantisation is 8"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_the_wrong_type_are_refused_by_name(
    config: dict[str, Any], file: dict[str, Any] | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        read_model({**LLAMA, **config}, quant=file)
    assert read_model({**LLAMA, **config}, ServeFlags(kv_cache_dtype="bf16"), quant=file)


def test_sglang_computes_gpt_oss_in_bfloat16_where_its_experts_are_mxfp4() -> None:
    fields = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 64}
    oss = {**LLAMA, **fields, "architectures": ["GptOssForCausalLM"], "torch_dtype": None}
    assert read_model(oss).kv.name == "float16"
    assert read_model({**oss, "quantization_config": {"quant_method": "mxfp4"}}).kv.name == (
        "bfloat16"
    )
