# SPDX-License-Identifier: Apache-2.0
"""Where each tensor of a Jamba checkpoint goes: all of them somewhere, and nothing left empty."""

from collections.abc import Iterable

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import nn

from sglang_jenga.models.jamba_config import JambaConfig


def load_completely(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], config: JambaConfig
) -> set[str]:
    """Fill the model's parameters; returns the names of the tensors that did.

    Raises ``ValueError`` for a tensor that has no place in the model, and for a place that stays
    empty: a model with either would answer, wrongly.
    """
    places = checkpoint_places(model, config.num_experts)
    filled = set()
    for name, tensor in weights:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in places:
            raise ValueError(f"the checkpoint's {name!r} has no place in {type(model).__name__}")
        param, told = places[name]
        load = getattr(param, "weight_loader", default_weight_loader)
        load(param, tensor, **told)
        filled.add(name)
    missing = sorted(places.keys() - filled)
    if missing:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} of {len(places)} tensors of "
            f"{type(model).__name__}, the first is {missing[0]!r}"
        )
    return filled


def checkpoint_places(
    model: nn.Module, num_experts: int
) -> dict[str, tuple[nn.Parameter, dict[str, object]]]:
    """For each tensor that a checkpoint must have: its parameter and what the loader is told.

    SGLang fuses Q, K and V, gate and up projections, and the experts of a layer.
    """
    places: dict[str, tuple[nn.Parameter, dict[str, object]]] = {}
    for name, param in model.named_parameters():
        if ".qkv_proj." in name:
            for part in "qkv":
                source = name.replace("qkv_proj", f"{part}_proj")
                places[source] = (param, {"loaded_shard_id": part})
        elif ".gate_up_proj." in name:
            for shard, part in enumerate(("gate_proj", "up_proj")):
                places[name.replace("gate_up_proj", part)] = (param, {"loaded_shard_id": shard})
        elif ".experts.w13_" in name or ".experts.w2_" in name:
            fused, shards = (
                ("w2_", {"w2": "down_proj"})
                if ".experts.w2_" in name
                else ("w13_", {"w1": "gate_proj", "w3": "up_proj"})
            )
            for expert in range(num_experts):
                for of_fused, part in shards.items():
                    source = name.replace(f".experts.{fused}", f".experts.{expert}.{part}.")
                    told = {"weight_name": name, "shard_id": of_fused, "expert_id": expert}
                    places[source] = (param, told)
        else:
            places[name] = (param, {})
    return places
