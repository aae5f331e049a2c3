# SPDX-License-Identifier: Apache-2.0
"""Small configurations in the forms that checkpoints are published in, where these differ from what
the tiny checkpoints have: models around text models, fields left out, older names of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
_EYES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def _plain(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    named = {"architectures": [architecture], "model_type": model_type}
    return {**_TEXT, **named, "torch_dtype": "bfloat16", **fields}


def _around(
    architecture: str, outer_type: str, vision: Mapping[str, Any], **text: Any
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": outer_type,
        "torch_dtype": "bfloat16",
        "text_config": {**_TEXT, **text},
        "vision_config": {**_EYES, **vision},
    }


def _gemma4(period: int, **text: Any) -> dict[str, Any]:
    kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(12)]
    return _around(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        {"model_type": "gemma4_vision"},
        model_type="gemma4_text",
        num_hidden_layers=12,
        num_attention_heads=8,
        sliding_window=64,
        layer_types=kinds,
        **text,
    )


_PIXELS = {"image_size": 28, "patch_size": 14}

FORMS: Mapping[str, dict[str, Any]] = {
    "qwen2": _plain("Qwen2ForCausalLM", "qwen2"),
    "qwen3, head_dim left out": _plain("Qwen3ForCausalLM", "qwen3"),
    "qwen3_moe": _plain("Qwen3MoeForCausalLM", "qwen3_moe", **_EXPERTS),
    "mixtral": _plain("MixtralForCausalLM", "mixtral", num_local_experts=4),
    "mistral without a window": _plain("MistralForCausalLM", "mistral", sliding_window=None),
    "gemma3, most fields left out": _around(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        _PIXELS,
        model_type="gemma3_text",
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=None,
        sliding_window=64,
    ),
    "gemma4, K and V in one": _gemma4(
        6, num_key_value_heads=4, num_global_key_value_heads=1, attention_k_eq_v=True
    ),
    "gemma4, layers that share": _gemma4(
        4, attention_k_eq_v=False, num_kv_shared_layers=4, global_head_dim=512
    ),
    "gemma4, a field that does not count": _gemma4(
        4, attention_k_eq_v=False, num_global_key_value_heads=1
    ),
    "llama4 around its text": _around(
        "Llama4ForConditionalGeneration",
        "llama4",
        _PIXELS,
        model_type="llama4_text",
        num_local_experts=2,
        intermediate_size_mlp=64,
    ),
    "exaone4 without windows": _plain(
        "Exaone4ForCausalLM",
        "exaone4",
        sliding_window=None,
        sliding_window_pattern=None,
        layer_types=["full_attention"] * 6,
    ),
    "falcon_h1, sizes to be computed": _plain(
        "FalconH1ForCausalLM",
        "falcon_h1",
        mamba_d_ssm=None,
        mamba_n_heads=8,
        mamba_d_head="auto",
        mamba_d_state=16,
        head_dim=64,
    ),
    "qwen3_next, bfloat16 states": _plain(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        num_hidden_layers=8,
        mamba_ssm_dtype="bfloat16",
        full_attention_interval=4,
        shared_expert_intermediate_size=64,
        **_EXPERTS,
    ),
    "nemotron_h, types of layers": _plain(
        "NemotronHForCausalLM",
        "nemotron_h",
        num_hidden_layers=4,
        layers_block_type=["mamba", "attention", "mamba", "mlp"],
        mamba_num_heads=8,
        mamba_head_dim=64,
        n_groups=2,
        mamba_n_groups=2,
        ssm_state_size=16,
        head_dim=64,
    ),
    "lfm2, positions of attention": _plain("Lfm2ForCausalLM", "lfm2", full_attn_idxs=[2, 5]),
}
for _config in FORMS.values():
    _inner = _config.get("text_config", _config)
    if _inner["num_key_value_heads"] is None:
        del _inner["num_key_value_heads"]
