# SPDX-License-Identifier: Apache-2.0
"""What is planned from config.json is what SGLang's model of it stores, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from built_models import built_model, kinds_of_built_model
from published_forms import FORMS
from sglang_jenga.core.configs.dtypes import model_dtype
from sglang_jenga.core.configs.families import FAMILIES, Family
from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.configs.find import find_config
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import ServeFlags, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.tiny import FAMILIES as TINY
from sglang_jenga.tiny import SPECS, build

IMAGES_BY_FLAG = ("gemma3_vision",)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("planned")
    return lambda family: build(family, root / family)


def flags_of(family: str, tp: int) -> ServeFlags:
    return ServeFlags(tp=tp, enable_multimodal=family in IMAGES_BY_FLAG)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("family", TINY)
def test_kinds_of_every_tested_family_are_those_of_its_built_model(
    family: str, tp: int, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(family)
    config = find_config(str(path)).config
    try:
        built = kinds_of_built_model(
            path, tp=tp, multimodal=True if family in IMAGES_BY_FLAG else None
        )
    except (AssertionError, ValueError, ConfigError) as refused:
        assert tp > 1, refused
        with pytest.raises(ConfigError, match="--tp"):
            read_model(config, flags_of(family, tp))
        return
    planned = read_model(config, flags_of(family, tp)).specs
    assert planned == built
    one, other = (plan_arena(specs, arena_bytes=2**26, page_tokens=1) for specs in (planned, built))
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize("form", FORMS)
def test_kinds_of_published_forms_are_those_of_the_built_model(form: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FORMS[form]))
    planned = read_model(find_config(str(tmp_path)).config).specs
    assert planned == kinds_of_built_model(tmp_path)


@pytest.mark.parametrize("family", TINY)
def test_the_planner_knows_whose_model_file_keeps_its_quantisation(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(family)
    model = built_model(path, multimodal=True if family in IMAGES_BY_FLAG else None)
    stored = read_model(find_config(str(path)).config, flags_of(family, 1))
    assert hasattr(model, "quant_config") is stored.family.auto_kv


def test_what_a_server_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    """A Mistral that says nothing of windows has one of 4,096 in every layer."""
    config = {**FORMS["mistral without a window"]}
    del config["sliding_window"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as by_server:
        kinds_of_built_model(tmp_path)
    with pytest.raises(ConfigError) as by_plan:
        read_model(config)
    assert str(by_plan.value) == str(by_server.value)


@pytest.mark.parametrize(
    ("asked", "dtype"), [("bf16", torch.bfloat16), ("fp8_e4m3", torch.float8_e4m3fn)]
)
def test_a_kv_dtype_changes_both_alike(
    asked: str, dtype: torch.dtype, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("gemma3")
    planned = read_model(find_config(str(path)).config, ServeFlags(kv_cache_dtype=asked)).specs
    assert planned == kinds_of_built_model(path, kv_cache_dtype=dtype)


#: Fields that a class only uses to fill in ``layer_types``: every n-th layer is full.
_PERIODS = ("sliding_window_pattern",)
#: A field that a class takes out of the configuration again.
_SPENT = ("global_head_dim",)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architectures[0])
def test_what_is_assumed_of_a_missing_field_is_what_its_configuration_class_assumes(
    family: Family,
) -> None:
    from transformers import AutoConfig

    usual = AutoConfig.for_model(family.model_type)
    usual.allow_global_per_layer_attribute_access = True
    for name, value in family.defaults.items():
        if name in _PERIODS and not isinstance(getattr(usual, name, None), int):
            full = [i for i, t in enumerate(usual.layer_types) if t == "full_attention"]
            assert full[:2] == [value - 1, 2 * value - 1], name
        elif name not in _SPENT:
            assert getattr(usual, name) == value, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "half"])
def test_the_model_is_computed_in_what_sglang_would_choose(
    dtype: str | None, model_type: str, asked: str
) -> None:
    from sglang.srt.configs.model_config import _get_and_verify_dtype

    config = {"torch_dtype": dtype, "model_type": model_type}
    fields = Fields(architecture="X", values=config, outer={}, defaults={})
    theirs = _get_and_verify_dtype(config, asked)
    assert str(theirs) == f"torch.{model_dtype(fields, asked).name}"


def test_every_architecture_of_a_tiny_checkpoint_can_be_planned() -> None:
    from sglang_jenga.core.configs.families import BY_ARCHITECTURE

    planned = {f.model_type for f in FAMILIES} | {"gemma3", "mllama"}
    assert {spec.model_type for spec in SPECS.values()} <= planned
    assert len(BY_ARCHITECTURE) == sum(len(f.architectures) for f in FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sglang_holds_published_architectures_as_we_say(name: str) -> None:
    from sglang.srt.arg_groups.overrides import _MAMBA_EXTRA_BUFFER_ARCHS
    from sglang.srt.configs.model_config import is_hybrid_swa_model

    stored = read_model(PUBLISHED[name].config)
    hybrid = is_hybrid_swa_model([stored.architecture], None)
    assert (stored.stock == "windows") is bool(hybrid)
    assert (stored.stock == "states") is (stored.kinds.states is not None)
    if stored.architecture in _MAMBA_EXTRA_BUFFER_ARCHS:
        assert stored.family.state_slots == 5
