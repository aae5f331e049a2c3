# SPDX-License-Identifier: Apache-2.0
"""Ministral and Mistral with the sliding windows that their configurations declare.

SGLang 0.5.23 builds ``MistralForCausalLM`` as a plain Llama and has no ``MinistralForCausalLM``
(its generic transformers backend takes over): neither passes a window to ``RadixAttention``, so
every layer attends to everything. That is another function than the one the model was trained as
(transformers applies the windows), and it keeps K/V for the whole context in layers that need
32,768 tokens of it at most.

Only the window differs from SGLang's classes, so only the window is set here, after they are built.
Upstream seam: an optional ``sliding_window_size`` argument of ``models.llama.LlamaAttention``.
"""

from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.mistral import MistralForCausalLM as FullAttentionMistral
from transformers import PretrainedConfig


def window_of_layer(config: PretrainedConfig, layer_id: int) -> int | None:
    """Tokens that layer ``layer_id`` attends to, itself included, or None for all of them.

    As transformers does it: ``sliding_window`` holds for the layers that ``layer_types`` calls
    ``sliding_attention``, and for every layer where there is no such list (transformers reads a
    ``mistral`` configuration that has one as ``ministral``).
    """
    window = getattr(config, "sliding_window", None)
    if window is None:
        return None
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer_id] != "sliding_attention":
        return None
    return int(window)


class _WindowedLlama(LlamaForCausalLM):
    """A Llama whose attention layers know their windows."""

    def __init__(
        self,
        config: PretrainedConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        # Layers of other pipeline stages are placeholders without attention.
        for layer_id in range(self.start_layer, self.end_layer):
            window = window_of_layer(config, layer_id)
            if window is not None:
                # RadixAttention counts only the tokens before the current one.
                self.model.layers[layer_id].self_attn.attn.sliding_window_size = window - 1

    def get_attention_sliding_window_size(self) -> int | None:
        """The window without the current token, for attention backends and pools; None without."""
        windows = (window_of_layer(self.config, i) for i in range(self.config.num_hidden_layers))
        return next((window - 1 for window in windows if window is not None), None)


class MinistralForCausalLM(_WindowedLlama):
    """Ministral-8B-2410: full and window layers interleaved as ``layer_types`` says."""


class MistralForCausalLM(_WindowedLlama, FullAttentionMistral):
    """Mistral-7B-v0.1 and others that declare ``sliding_window``; later Mistrals declare none."""


EntryClass = [MinistralForCausalLM, MistralForCausalLM]
