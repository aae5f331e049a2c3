# SPDX-License-Identifier: Apache-2.0
"""The architectures that can be planned from their configuration, and how SGLang's own pools hold
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_jenga.core import kernels
from sglang_jenga.core.configs import attention_families as text
from sglang_jenga.core.configs import state_families as recurrent
from sglang_jenga.core.configs.attention_families import LayersOf
from sglang_jenga.core.configs.dtypes import BFLOAT16, Dtype
from sglang_jenga.core.kernels import StateKernels

#: How SGLang 0.5.23 holds a model in its own pools: every layer all tokens; a pool of windows
#: beside one of full layers; a pool of states beside the K/V of attention layers.
StockPools = Literal["all-full", "windows", "states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Architectures whose layers follow one rule.

    model_type: transformers' name of the configuration class that ``defaults`` are taken from.
    defaults: what that class means where a field is left out; only fields that published
        checkpoints do leave out.
    images: ``cross``: in layers of their own; ``always`` / ``flag``: embeddings of images are
        cached, always or with ``--enable-multimodal``.
    state_slots: states that SGLang's own pools set aside for each running request (its
        ``_calculate_mamba_ratio``): 5 where kernels write snapshots, else 3.
    page_one: the runtime serves it with pages of one token only.
    forced: what SGLang computes in whatever is asked, by the ``quant_method`` of a checkpoint.
    auto_kv: whether ``--kv-cache-dtype auto`` finds how a checkpoint's K/V is quantised: it asks
        the model, and some model files do not keep it.
    state_kernels: how its kernels find a state on a GPU, where it has states.
    """

    architectures: tuple[str, ...]
    layers: LayersOf
    model_type: str
    stock: StockPools = "all-full"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    images: Literal["none", "cross", "always", "flag"] = "none"
    state_slots: int = 0
    page_one: bool = False
    forced: Mapping[str, Dtype] = field(default_factory=dict)
    auto_kv: bool = True
    state_kernels: StateKernels = kernels.UNCHECKED

    def forced_dtype(self, config: Mapping[str, Any]) -> Dtype | None:
        """The type of :attr:`forced` for a config.json."""
        quantisation = config.get("quantization_config")
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        return self.forced.get(method) if isinstance(method, str) else None


_GEMMA2 = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}
_GEMMA3 = {**_GEMMA2, "sliding_window_pattern": 6}
_GEMMA4 = {**_GEMMA2, "sliding_window": 512}
_QWEN3_NEXT = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_MAMBA2_SHARED = {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1}

FAMILIES: tuple[Family, ...] = (
    Family(
        architectures=("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM"),
        layers=text.uniform,
        model_type="llama",
    ),
    Family(
        architectures=("Qwen3ForCausalLM",),
        layers=text.uniform,
        model_type="qwen3",
        defaults={"head_dim": 128},
    ),
    Family(
        architectures=("MixtralForCausalLM",),
        layers=text.uniform_divided,
        model_type="mixtral",
    ),
    Family(
        architectures=("MistralForCausalLM", "MinistralForCausalLM"),
        layers=text.mistral,
        model_type="ministral",
        defaults={"sliding_window": 4096},
    ),
    Family(
        architectures=("Gemma2ForCausalLM",),
        layers=text.gemma2,
        model_type="gemma2",
        defaults=_GEMMA2,
    ),
    Family(
        architectures=("Gemma3ForCausalLM",),
        layers=text.windows,
        model_type="gemma3_text",
        defaults=_GEMMA3,
    ),
    Family(
        architectures=("Gemma3ForConditionalGeneration",),
        layers=text.windows,
        model_type="gemma3_text",
        defaults=_GEMMA3,
        images="flag",
    ),
    Family(
        architectures=("Gemma4ForCausalLM",),
        layers=text.gemma4,
        model_type="gemma4_text",
        defaults=_GEMMA4,
        stock="windows",
    ),
    Family(
        architectures=("Gemma4ForConditionalGeneration",),
        layers=text.gemma4,
        model_type="gemma4_text",
        # global_head_dim is taken out of the configuration by its class; 512 is what it means.
        defaults={**_GEMMA4, "global_head_dim": 512},
        stock="windows",
        images="always",
    ),
    Family(
        architectures=("GptOssForCausalLM",),
        layers=text.windows,
        model_type="gpt_oss",
        defaults={"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
        forced={"mxfp4": BFLOAT16},
        stock="windows",
    ),
    Family(
        architectures=("Llama4ForConditionalGeneration",),
        layers=text.llama4,
        model_type="llama4_text",
        defaults={"head_dim": 128, "attention_chunk_size": 8192},
        stock="windows",
        images="flag",
    ),
    Family(
        architectures=("Cohere2ForCausalLM",),
        layers=text.cohere2,
        model_type="cohere2",
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    Family(
        architectures=("Olmo3ForCausalLM",),
        layers=text.olmo3,
        model_type="olmo3",
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
        auto_kv=False,
    ),
    Family(
        architectures=("Exaone4ForCausalLM",),
        layers=text.exaone4,
        model_type="exaone4",
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    Family(
        architectures=("MllamaForConditionalGeneration",),
        layers=text.mllama,
        model_type="mllama_text_model",
        images="cross",
        page_one=True,
    ),
    Family(
        architectures=("GraniteMoeHybridForCausalLM",),
        layers=recurrent.granite_hybrid,
        state_kernels=kernels.MAMBA2,
        model_type="granitemoehybrid",
        defaults=_MAMBA2_SHARED,
        stock="states",
        state_slots=5,
    ),
    Family(
        architectures=("FalconH1ForCausalLM",),
        layers=recurrent.falcon_h1,
        state_kernels=kernels.MAMBA2,
        model_type="falcon_h1",
        defaults=_MAMBA2_SHARED,
        stock="states",
        state_slots=5,
    ),
    Family(
        architectures=("NemotronHForCausalLM",),
        layers=recurrent.nemotron_h,
        state_kernels=kernels.MAMBA2,
        model_type="nemotron_h",
        defaults={"conv_kernel": 4, "head_dim": 128},
        stock="states",
        state_slots=5,
    ),
    Family(
        architectures=("Qwen3NextForCausalLM",),
        layers=recurrent.qwen3_next,
        state_kernels=kernels.DELTA_NET,
        model_type="qwen3_next",
        defaults=_QWEN3_NEXT,
        stock="states",
        state_slots=5,
    ),
    Family(
        architectures=("Lfm2ForCausalLM",),
        layers=recurrent.lfm2,
        model_type="lfm2",
        defaults={"conv_L_cache": 3},
        stock="states",
        state_slots=3,
        state_kernels=kernels.SHORT_CONVOLUTION,
    ),
    Family(
        architectures=("JambaForCausalLM",),
        layers=recurrent.jamba,
        state_kernels=kernels.MAMBA1,
        model_type="jamba",
        defaults={
            "attn_layer_offset": 4,
            "attn_layer_period": 8,
            "mamba_d_conv": 4,
            "mamba_d_state": 16,
            "mamba_expand": 2,
        },
        auto_kv=False,
        stock="states",
        state_slots=5,
    ),
)
BY_ARCHITECTURE: Mapping[str, Family] = {
    name: family for family in FAMILIES for name in family.architectures
}
