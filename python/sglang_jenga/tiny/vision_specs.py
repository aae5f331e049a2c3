# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of models that take images."""

from sglang_jenga.tiny.spec import COMMON, SMALL_SQUARE, TEST, TinySpec
from sglang_jenga.tiny.tokenizer import IMAGE_ID

IMAGE_PIXELS = 56
PATCH_PIXELS = 14
MAX_TILES = 4
IMAGE_TOKENS = MAX_TILES * ((IMAGE_PIXELS // PATCH_PIXELS) ** 2 + 1)
"""Encoder tokens of one image: SGLang pads every image to the most tiles."""


def _mllama() -> TinySpec:
    """Llama 3.2 Vision: cross layers, which read the images of a request and nothing else, among
    self layers, which read its text (published: 8 among 32). The encoder hands out two of its
    hidden states beside the last one, both from before its last layer."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    hidden = 64
    taken = [1, 2]
    text = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 6,
        "cross_attention_layers": [1, 4],
        "rope_parameters": rope,
    }
    vision = {
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_global_layers": 2,
        "attention_heads": 4,
        "image_size": IMAGE_PIXELS,
        "patch_size": PATCH_PIXELS,
        "max_num_tiles": MAX_TILES,
        "intermediate_layers_indices": taken,
        "vision_output_dim": hidden * (1 + len(taken)),
        "supported_aspect_ratios": [
            [high, wide]
            for high in range(1, MAX_TILES + 1)
            for wide in range(1, MAX_TILES // high + 1)
        ],
    }
    half = [0.5, 0.5, 0.5]
    return TinySpec(
        family="mllama",
        preset=TEST,
        model_type="mllama",
        config={"text_config": text, "vision_config": vision, "image_token_index": IMAGE_ID},
        image_processor={
            "image_processor_type": "MllamaImageProcessor",
            "processor_class": "MllamaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            "image_mean": half,
            "image_std": half,
            "rescale_factor": 1 / 255,
            "resample": 2,
            "max_image_tiles": MAX_TILES,
            "size": {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        },
    )


IMAGE_SPECS: tuple[TinySpec, ...] = (_mllama(),)
IMAGE_FAMILIES: tuple[str, ...] = tuple(spec.family for spec in IMAGE_SPECS)
