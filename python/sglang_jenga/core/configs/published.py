# SPDX-License-Identifier: Apache-2.0
"""Configurations of published models, by short name: the fields that decide what is stored.

Values are those of the public config.json of the named repository; fields that no kind depends on
are left out. Where a checkpoint's states are commonly served in another type than SGLang's default,
``mamba_ssm_dtype`` says which one is meant, and the launch command carries the flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GIGA = 10**9
_BF16_STATES = ("--mamba-ssm-dtype", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """One published model.

    parameters: billions of them, all experts and encoders included. bytes_per_parameter: as
    published, 2 for bf16. flags: of a server, where the configuration here says more than the
    published one. note: what else differs from it.
    """

    repository: str
    parameters: float
    config: Mapping[str, Any]
    bytes_per_parameter: float = 2.0
    flags: tuple[str, ...] = ()
    note: str = ""

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights, as far as the number of parameters is published."""
        return int(self.parameters * _GIGA * self.bytes_per_parameter)

    @property
    def weights(self) -> str:
        """How :attr:`weights_bytes` was found, for people."""
        return f"about {self.parameters:g} B parameters of {self.bytes_per_parameter:g} B"


def _full_every(layers: int, period: int, local: str = "sliding_attention") -> list[str]:
    return ["full_attention" if (i + 1) % period == 0 else local for i in range(layers)]


def _model(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "torch_dtype": "bfloat16", **fields}


def _gemma3(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    text = {
        "model_type": "gemma3_text",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    }
    return _model("Gemma3ForConditionalGeneration", text_config=text, vision_config={})


def _gemma4(window: int, **text: Any) -> dict[str, Any]:
    text = {"model_type": "gemma4_text", "sliding_window": window, "head_dim": 256, **text}
    text["global_head_dim"] = 512
    text["layer_types"] = _full_every(text["num_hidden_layers"], 6)
    return _model("Gemma4ForConditionalGeneration", text_config=text)


def _gpt_oss(layers: int) -> dict[str, Any]:
    return _model(
        "GptOssForCausalLM",
        num_hidden_layers=layers,
        hidden_size=2880,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
        layer_types=_full_every(layers, 2),
    )


def _qwen3_next(state: str) -> dict[str, Any]:
    return _model(
        "Qwen3NextForCausalLM",
        num_hidden_layers=48,
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=256,
        full_attention_interval=4,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        mamba_ssm_dtype=state,
    )


PUBLISHED: Mapping[str, PublishedModel] = {
    "llama31-8b": PublishedModel(
        repository="meta-llama/Llama-3.1-8B-Instruct",
        parameters=8.03,
        config=_model(
            "LlamaForCausalLM",
            num_hidden_layers=32,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
    ),
    "qwen3-8b": PublishedModel(
        repository="Qwen/Qwen3-8B",
        parameters=8.19,
        config=_model(
            "Qwen3ForCausalLM",
            num_hidden_layers=36,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
    "gemma2-9b": PublishedModel(
        repository="google/gemma-2-9b-it",
        parameters=9.24,
        config=_model(
            "Gemma2ForCausalLM",
            model_type="gemma2",
            num_hidden_layers=42,
            hidden_size=3584,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
            sliding_window=4096,
        ),
    ),
    "gemma3-12b": PublishedModel(
        repository="google/gemma-3-12b-it",
        parameters=12.2,
        config=_gemma3(48, 3840, 16, 8, 256),
    ),
    "gemma3-27b": PublishedModel(
        repository="google/gemma-3-27b-it",
        parameters=27.4,
        config=_gemma3(62, 5376, 32, 16, 128),
    ),
    "gemma4-31b": PublishedModel(
        repository="google/gemma-4-31B-it",
        parameters=31.0,
        config=_gemma4(
            1024,
            num_hidden_layers=60,
            num_attention_heads=32,
            num_key_value_heads=16,
            num_global_key_value_heads=4,
            attention_k_eq_v=True,
        ),
    ),
    "gemma4-e4b": PublishedModel(
        repository="google/gemma-4-E4B-it",
        parameters=8.0,
        config=_gemma4(
            512,
            num_hidden_layers=42,
            num_attention_heads=8,
            num_key_value_heads=2,
            num_kv_shared_layers=18,
            attention_k_eq_v=False,
        ),
    ),
    "gpt-oss-20b": PublishedModel(
        repository="openai/gpt-oss-20b",
        parameters=20.9,
        bytes_per_parameter=0.66,
        config=_gpt_oss(24),
    ),
    "gpt-oss-120b": PublishedModel(
        repository="openai/gpt-oss-120b",
        parameters=116.8,
        bytes_per_parameter=0.56,
        config=_gpt_oss(36),
    ),
    "ministral-8b": PublishedModel(
        repository="mistralai/Ministral-8B-Instruct-2410",
        parameters=8.02,
        config=_model(
            "MinistralForCausalLM",
            num_hidden_layers=36,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            sliding_window=32768,
            layer_types=["sliding_attention" if i % 4 else "full_attention" for i in range(36)],
        ),
        note="its published config.json states one window for all layers; the layers here are its "
        "model card's: write layer_types into the checkpoint's config.json",
    ),
    "llama4-scout": PublishedModel(
        repository="meta-llama/Llama-4-Scout-17B-16E-Instruct",
        parameters=109.0,
        config=_model(
            "Llama4ForConditionalGeneration",
            text_config={
                "model_type": "llama4_text",
                "num_hidden_layers": 48,
                "hidden_size": 5120,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "attention_chunk_size": 8192,
            },
            vision_config={},
        ),
    ),
    "llama32-11b-vision": PublishedModel(
        repository="meta-llama/Llama-3.2-11B-Vision-Instruct",
        parameters=10.7,
        config=_model(
            "MllamaForConditionalGeneration",
            text_config={
                "model_type": "mllama_text_model",
                "num_hidden_layers": 40,
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "cross_attention_layers": list(range(3, 40, 5)),
            },
            vision_config={"image_size": 560, "patch_size": 14, "max_num_tiles": 4},
        ),
    ),
    "jamba-v0.1": PublishedModel(
        repository="ai21labs/Jamba-v0.1",
        parameters=51.6,
        config=_model(
            "JambaForCausalLM",
            num_hidden_layers=32,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            attn_layer_period=8,
            attn_layer_offset=4,
            mamba_d_state=16,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_ssm_dtype="bfloat16",
        ),
        flags=_BF16_STATES,
    ),
    "qwen3-next-80b": PublishedModel(
        repository="Qwen/Qwen3-Next-80B-A3B-Instruct",
        parameters=81.3,
        config=_qwen3_next("bfloat16"),
        flags=_BF16_STATES,
    ),
    "qwen3-next-80b-fp32ssm": PublishedModel(
        repository="Qwen/Qwen3-Next-80B-A3B-Instruct",
        parameters=81.3,
        config=_qwen3_next("float32"),
    ),
    "falcon-h1-7b": PublishedModel(
        repository="tiiuae/Falcon-H1-7B-Instruct",
        parameters=7.59,
        config=_model(
            "FalconH1ForCausalLM",
            num_hidden_layers=44,
            hidden_size=3072,
            num_attention_heads=12,
            num_key_value_heads=2,
            head_dim=128,
            mamba_d_ssm=3072,
            mamba_n_heads=24,
            mamba_d_head=128,
            mamba_d_state=256,
            mamba_n_groups=1,
            mamba_d_conv=4,
        ),
    ),
    "granite-4.0-h-small": PublishedModel(
        repository="ibm-granite/granite-4.0-h-small",
        parameters=32.2,
        config=_model(
            "GraniteMoeHybridForCausalLM",
            num_hidden_layers=40,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            layer_types=["attention" if i % 10 == 5 else "mamba" for i in range(40)],
            mamba_n_heads=128,
            mamba_d_head=64,
            mamba_d_state=128,
            mamba_n_groups=1,
            mamba_d_conv=4,
            mamba_expand=2,
        ),
    ),
    "nemotron-h-8b": PublishedModel(
        repository="nvidia/Nemotron-H-8B-Base-8K",
        parameters=8.1,
        config=_model(
            "NemotronHForCausalLM",
            hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            num_attention_heads=32,
            num_key_value_heads=8,
            hidden_size=4096,
            head_dim=128,
            mamba_num_heads=128,
            mamba_head_dim=64,
            ssm_state_size=128,
            n_groups=8,
            conv_kernel=4,
        ),
    ),
}
