# SPDX-License-Identifier: Apache-2.0
"""What describes one tiny checkpoint, and the sizes that many families share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_jenga.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE

TEST, DEMO, BENCH = "test", "demo", "bench"

FULL, WINDOW, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """One checkpoint before its random weights.

    Attributes:
        family: the name users type.
        preset: ``test``, ``demo`` or ``bench``.
        model_type: transformers' name of the configuration class.
        config: keyword arguments of that class.
        architecture: the class SGLang must serve, where it differs from transformers' name
            (Llama 4: SGLang's ``Llama4ForCausalLM`` cannot load experts; its multimodal class
            loads text-only checkpoints).
        legacy_rope: write ``rope_theta`` as the published checkpoints of the family do, instead of
            transformers 5's nested ``rope_parameters``, where SGLang has its own configuration
            class that reads only the former (OLMo-3).
        rewritten: keys of ``config.json`` with the value to write, or None to leave the key out,
            where SGLang reads the published form of a setting and not transformers 5's.
        renamed_weights: (prefix that transformers 5 writes, prefix of the published checkpoints),
            which is the one SGLang reads.
        embedding_std: standard deviation of one embedding element; ``hidden_size ** -0.5`` for
            families that multiply embeddings by ``sqrt(hidden_size)``, so that the residual stream
            starts at 1.
        image_processor: ``preprocessor_config.json`` of a model that takes images, empty for
            others.
        image_tokens: its tokens for images by their role; the first one stands for an image in a
            prompt.
        image_processor_config: ``processor_config.json``, empty: it needs none.
    """

    family: str
    preset: str
    model_type: str
    config: Mapping[str, object]
    architecture: str | None = None
    legacy_rope: bool = False
    rewritten: Mapping[str, object] = field(default_factory=dict)
    renamed_weights: tuple[str, str] | None = None
    embedding_std: float = 1.0
    image_processor: Mapping[str, object] = field(default_factory=dict)
    image_tokens: Mapping[str, str] = field(default_factory=dict)
    image_processor_config: Mapping[str, object] = field(default_factory=dict)


def layer_types(*, layers: int, local: str, period: int, full_first: bool = False) -> list[str]:
    """``period - 1`` local layers for one full layer; the full one comes last in a period, or
    first."""
    full_at = 0 if full_first else period - 1
    return [FULL if i % period == full_at else local for i in range(layers)]


COMMON: Mapping[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "max_position_embeddings": 4096,
}
# Grouped queries, and 64 because it is the smallest head that FlashInfer serves: the same
# checkpoints run on a GPU.
SMALL: Mapping[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
# Families whose head_dim is hidden_size / num_attention_heads.
SMALL_SQUARE: Mapping[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Cheap arithmetic, much KV: as many KV heads as query heads.
BENCH_SIZE: Mapping[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 16384,
}
LLAMA3_ROPE: Mapping[str, object] = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
#: Gemma 3: a RoPE base for each kind of layer.
GEMMA3_ROPE: Mapping[str, object] = {
    WINDOW: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "default", "rope_theta": 1_000_000.0},
}
