# SPDX-License-Identifier: Apache-2.0
"""A tiny LoRA adapter in PEFT's file format, made to fit a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

NAME = "tiny"
RANK = 4
#: Large enough that every answer changes, small enough that it stays the model's.
SCALE = 0.3
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
_WEIGHT = re.compile(r"(?:^|\.)(layers\.\d+\.self_attn\.(\w+))\.weight$")


def build_adapter(checkpoint: Path, directory: Path) -> Path:
    """Write an adapter of every attention projection of ``checkpoint`` to ``directory``."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    targets = set()
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for name in sorted(weights.keys()):
                match = _WEIGHT.search(name)
                if match is None or match.group(2) not in _TARGETS:
                    continue
                out_size, in_size = weights.get_slice(name).get_shape()
                prefix = f"base_model.model.model.{match.group(1)}"
                down = rng.standard_normal((RANK, in_size)) * in_size**-0.5
                up = rng.standard_normal((out_size, RANK)) * SCALE
                tensors[f"{prefix}.lora_A.weight"] = down.astype(np.float32)
                tensors[f"{prefix}.lora_B.weight"] = up.astype(np.float32)
                targets.add(match.group(2))
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return directory
