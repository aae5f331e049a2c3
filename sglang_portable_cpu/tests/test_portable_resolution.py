# SPDX-License-Identifier: Apache-2.0
"""Server arguments: the defaults this device needs, and what torch_native is not trusted with."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

import sglang.srt.platforms as platforms
from sglang.srt.arg_groups import resolution_hooks
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from sglang_portable_cpu import resolution
from sglang_portable_cpu.platform import PortableCpuPlatform

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
WINDOWS = {
    "sliding_window": 16,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ],
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MODELS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **TEXT},
    "gemma-2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        **TEXT,
    },
    "exaone-4": {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "sliding_window_pattern": "LLLG",
        **TEXT,
        **WINDOWS,
    },
    "gpt-oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **TEXT,
        **WINDOWS,
        **EXPERTS,
    },
    "gemma-4": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": {"model_type": "gemma4_text", "global_head_dim": 32, **TEXT, **WINDOWS},
    },
    "granite-hybrid": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        **TEXT,
        **EXPERTS,
    },
    "lfm2": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        **TEXT,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "llama-4": {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "attention_chunk_size": 64,
            **TEXT,
            **EXPERTS,
        },
    },
}


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """`resolve(model, **server_args)` -> the resolved view with this plugin's hooks alone."""
    if not isinstance(platforms.current_platform, PortableCpuPlatform):
        pytest.skip(f"this machine serves on {platforms.current_platform}, not on a plain CPU")
    load_plugins()
    own = {
        step: [hook for hook in hooks if hook.__module__ == resolution.__name__]
        for step, hooks in resolution_hooks._HOOKS.items()
    }
    monkeypatch.setattr(resolution_hooks, "_HOOKS", own)

    def run(model: str, **server_args):
        path = tmp_path / model
        path.mkdir()
        (path / "config.json").write_text(json.dumps(MODELS[model]))
        args = ServerArgs(
            model_path=str(path),
            skip_tokenizer_init=True,
            enable_multimodal=False,
            **server_args,
        )
        args.resolve_once()
        return resolved_view(args)

    return run


def test_the_device_is_the_cpu_and_attention_is_torch_without_a_flag(resolve):
    view = resolve("llama")
    assert (view.device, view.attention_backend) == ("cpu", "torch_native")


def test_half_of_the_free_memory_is_used_unless_the_user_says_otherwise(resolve):
    assert resolve("llama").mem_fraction_static == resolution.DEFAULT_MEMORY_FRACTION
    assert resolve("gemma-2", mem_fraction_static=0.2).mem_fraction_static == 0.2


def test_experts_use_the_layout_of_the_torch_experts(resolve):
    assert resolve("llama").moe_runner_backend == "triton"


def test_adapters_are_computed_in_torch_unless_the_user_says_otherwise(resolve):
    assert resolve("llama").lora_backend == "torch_native"
    assert resolve("gemma-2", lora_backend="triton").lora_backend == "triton"


def test_exaone_is_admitted_with_torch_attention(resolve):
    assert resolve("exaone-4").attention_backend == "torch_native"


def test_sinks_are_refused_before_the_server_starts(resolve):
    with pytest.raises(ValueError, match=r"GptOssForCausalLM.*sinks"):
        resolve("gpt-oss")


def test_window_layers_of_another_shape_are_refused(resolve):
    with pytest.raises(ValueError, match=r"Gemma4ForConditionalGeneration.*another shape"):
        resolve("gemma-4")


def test_a_pool_for_window_layers_is_turned_off_where_it_would_be_misread(resolve, caplog):
    assert resolve("llama-4").disable_hybrid_swa_memory
    assert "--disable-hybrid-swa-memory" in caplog.text


def test_ignored_attention_chunks_and_soft_caps_are_named_with_their_size(resolve, caplog):
    resolve("llama-4")
    resolve("gemma-2")
    assert "ignores the attention chunks of 64 tokens" in caplog.text
    assert "ignores the attention logit soft cap of 50.0" in caplog.text


def test_another_backend_is_left_alone(resolve):
    view = resolve("llama-4", attention_backend="triton")
    assert view.attention_backend == "triton"
    assert not view.disable_hybrid_swa_memory


@pytest.fixture
def conv_dtype(monkeypatch):
    """Reads the dtype of convolution states that a resolution left in the environment."""
    name = "SGLANG_MAMBA_CONV_DTYPE"
    monkeypatch.setenv(name, "")  # so that it is restored afterwards
    monkeypatch.delenv(name)
    return lambda: os.environ.get(name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convolution_states_take_the_dtype_of_the_model(resolve, conv_dtype, dtype):
    resolve("granite-hybrid", dtype=dtype)
    assert conv_dtype() == dtype


def test_convolution_states_keep_the_dtype_that_the_user_named(resolve, conv_dtype, monkeypatch):
    monkeypatch.setenv("SGLANG_MAMBA_CONV_DTYPE", "float16")
    resolve("granite-hybrid", dtype="float32")
    assert conv_dtype() == "float16"


def test_a_model_without_states_leaves_the_environment_alone(resolve, conv_dtype):
    resolve("llama")
    assert conv_dtype() is None


@pytest.mark.parametrize("strategy", ["extra_buffer", "extra_buffer_lazy"])
def test_snapshots_of_states_are_allowed(resolve, conv_dtype, strategy):
    view = resolve("granite-hybrid", mamba_radix_cache_strategy=strategy)
    assert view.mamba_radix_cache_strategy == strategy
    assert not view.disable_overlap_schedule


def test_short_convolutions_have_no_snapshots(resolve, conv_dtype):
    """SGLang's own refusal: when it goes, the table in README.md and states_check.py grow."""
    with pytest.raises(AssertionError, match="use no_buffer"):
        resolve("lfm2", mamba_radix_cache_strategy="extra_buffer")
