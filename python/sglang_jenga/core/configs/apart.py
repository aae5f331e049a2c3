# SPDX-License-Identifier: Apache-2.0
"""Models that store more per token than the K and V of their attention layers, or other rows.

The arena holds K and V by layer. Rows that a model keeps elsewhere would lie outside of it, so such
models are refused: by what their configuration says they store, or by name where it says nothing.
The planner asks with a config.json, the server with the configuration of its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields that only models with such rows have, and what these are.
_FIELDS: Mapping[str, str] = {
    "compress_ratios": "compressed K/V, their states and index keys beside its windows",
    "kv_lora_rank": "latent (MLA) rows",
    "index_topk": "index keys of sparse attention beside its K/V",
    "index_head_dim": "index keys of sparse attention beside its K/V",
    "indexer_n_heads": "compressed index keys beside its K/V",
    "indexer_head_dim": "compressed index keys beside its K/V",
    "sparse_attention_config": "index keys of sparse attention beside its K/V",
    "sparse_attention_freq": "index keys of sparse attention beside its K/V",
}
#: Those that say so on a server, too, where SGLang itself knows which models have latent rows.
FIELDS_OF_KEYS = tuple(name for name in _FIELDS if name != "kv_lora_rank")
#: Beginnings of names, where a configuration leaves these fields to the model's file.
_NAMES: Mapping[str, str] = {
    "DeepseekV4": _FIELDS["compress_ratios"],
    "MiniMaxM3Sparse": _FIELDS["sparse_attention_config"],
    "Qwen4Exp": _FIELDS["indexer_n_heads"],
}


def stored_apart(architecture: str, text: Mapping[str, Any]) -> str:
    """What the model stores that is no kind of the arena, and what says so; empty: nothing known.

    text: the text model's fields.
    """
    for field, rows in _FIELDS.items():
        if text.get(field):
            return f"{rows} ({field!r} is set)"
    for name, rows in _NAMES.items():
        if architecture.startswith(name):
            return rows
    return ""
