# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of models that take images."""

from sglang_jenga.tiny.spec import (
    COMMON,
    GEMMA3_ROPE,
    LLAMA3_ROPE,
    SMALL,
    SMALL_SQUARE,
    TEST,
    WINDOW,
    TinySpec,
    layer_types,
)
from sglang_jenga.tiny.tokenizer import FIRST_IMAGE_ID, VOCAB_SIZE

IMAGE_PIXELS = 56
PATCH_PIXELS = 14
MAX_TILES = 4
IMAGE_TOKENS = MAX_TILES * ((IMAGE_PIXELS // PATCH_PIXELS) ** 2 + 1)
"""Encoder tokens of one image: SGLang pads every image to the most tiles."""


def _mllama() -> TinySpec:
    """Llama 3.2 Vision: cross layers, which read the images of a request and nothing else, among
    self layers, which read its text (published: 8 among 32). The encoder hands out two of its
    hidden states beside the last one, both from before its last layer."""
    hidden = 64
    taken = [1, 2]
    text = {
        **COMMON,
        **SMALL_SQUARE,
        "num_hidden_layers": 6,
        "cross_attention_layers": [1, 4],
        "rope_parameters": LLAMA3_ROPE,
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
        config={"text_config": text, "vision_config": vision, "image_token_index": FIRST_IMAGE_ID},
        image_tokens={"image_token": "<|image|>"},
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


def _gemma3_vision() -> TinySpec:
    """Gemma 3 with its eyes: full and window layers, and an encoder whose 64 embeddings of an image
    (published: 256) are tokens of the text. The encoder's patches are averaged four by four."""
    boi, soft, eoi = range(FIRST_IMAGE_ID, FIRST_IMAGE_ID + 3)
    tokens_per_image, pixels = 64, 224
    text = {
        **COMMON,
        **SMALL,
        "vocab_size": VOCAB_SIZE + 64,  # rows for the tokens about images, in whole blocks
        "num_hidden_layers": 6,
        "layer_types": layer_types(layers=6, local=WINDOW, period=6),
        "sliding_window": 32,
        "query_pre_attn_scalar": 64,
        "rope_parameters": GEMMA3_ROPE,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": pixels,
        "patch_size": PATCH_PIXELS,
        "vision_use_head": False,
    }
    half = [0.5, 0.5, 0.5]
    return TinySpec(
        family="gemma3_vision",
        preset=TEST,
        model_type="gemma3",
        config={
            "text_config": text,
            "vision_config": vision,
            "mm_tokens_per_image": tokens_per_image,
            "boi_token_index": boi,
            "image_token_index": soft,
            "eoi_token_index": eoi,
        },
        embedding_std=128**-0.5,
        renamed_weights=("vision_tower.", "vision_tower.vision_model."),
        image_tokens={
            "boi_token": "<start_of_image>",
            "image_token": "<image_soft_token>",
            "eoi_token": "<end_of_image>",
        },
        image_processor={
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pan_and_scan": False,
            "image_mean": half,
            "image_std": half,
            "image_seq_length": tokens_per_image,
            "rescale_factor": 1 / 255,
            "resample": 2,
            "size": {"height": pixels, "width": pixels},
        },
        image_processor_config={
            "processor_class": "Gemma3Processor",
            "image_seq_length": tokens_per_image,
        },
    )


IMAGE_SPECS: tuple[TinySpec, ...] = (_mllama(), _gemma3_vision())
IMAGE_FAMILIES: tuple[str, ...] = tuple(spec.family for spec in IMAGE_SPECS)
