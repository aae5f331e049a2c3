# SPDX-License-Identifier: Apache-2.0
"""Models that keep rows outside of their RadixAttention layers: refused, by what they are made of.

The arena holds what these layers store. Some models store more beside it: index keys that choose
which tokens are attended to, compressed K/V, latent rows. SGLang gives them pools of their own, and
their model files write there. They are known by the modules that make such rows, by SGLang's own
choice of a pool, and by what their configuration says.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from sglang_jenga.core.configs.apart import FIELDS_OF_KEYS, stored_apart
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.model_kinds import unsupported

#: Last part of the names of modules that make such rows. SGLang calls them so in every model that
#: has them: ``indexer``, ``compressor``, ``index_k_norm``, ``index_qkv_proj``.
_MAKER = re.compile(r"(?:indexer|compressor|index_\w+)$")


def require_known_rows(model_config: Any, *, latent: bool) -> None:
    """Refuse, before anything is loaded, a model whose configuration says that it stores latent
    rows or others beside its K/V; ``latent``: SGLang takes its MLA path.

    Raises:
        ConfigError: naming the model and the rows.
    """
    architecture = str(next(iter(model_config.hf_config.architectures or ["the model"])))
    if latent:
        raise ConfigError(
            unsupported(
                architecture, "latent (MLA) rows", "they are not a kind of the arena here yet"
            )
        )
    text = {name: getattr(model_config.hf_text_config, name, None) for name in FIELDS_OF_KEYS}
    if rows := stored_apart(architecture, text):
        raise ConfigError(unsupported(architecture, rows, _WHY))


def require_rows_in_layers(model: torch.nn.Module, architecture: str) -> None:
    """Refuse a built model with modules that make rows outside of its attention layers.

    Raises:
        ConfigError: naming the model and the first such module.
    """
    for name, module in model.named_modules():
        if _MAKER.search(name.rpartition(".")[2]):
            raise ConfigError(
                unsupported(
                    f"{architecture}, module {name} ({type(module).__name__}),",
                    "index keys or compressed rows beside its K/V",
                    _WHY,
                )
            )


_WHY = "its model file keeps these rows in pools of SGLang's own, outside of the arena"
