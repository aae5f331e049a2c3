# SPDX-License-Identifier: Apache-2.0
"""What SGLang must read off a Jamba configuration, and how it learns of the architecture.

SGLang 0.5.23 knows neither. Both seams are official: transformers' ``AutoConfig.register`` and
SGLang's ``linear_attn_model_registry``. They are read while server arguments are resolved, long
before a model class is looked up, so :func:`register_jamba` belongs in a plugin's load function.
"""

from typing import TYPE_CHECKING

import torch
from transformers import JambaConfig as TransformersJambaConfig

if TYPE_CHECKING:
    from sglang.srt.configs.mamba_utils import Mamba2CacheParams

ARCHITECTURE = "JambaForCausalLM"
BACKEND_CLASS = "sglang_jenga.models.mamba1_backend.Mamba1AttnBackend"

SNAPSHOT_GRID_TOKENS = 64
"""Prefix states are kept at multiples of it (and of the page). The scan could stop anywhere; 64 is
what SGLang assumes of a configuration that says nothing."""


# transformers' tables of model and tokenizer classes are keyed by the name of this class.
class JambaConfig(TransformersJambaConfig):
    """transformers' configuration with the attributes that SGLang asks of recurrent models."""

    @property
    def full_attention_layer_ids(self) -> list[int]:
        """Layers with K/V."""
        return [i for i, kind in enumerate(self.layers_block_type) if kind == "attention"]

    @property
    def mamba_layer_ids(self) -> list[int]:
        """Layers with a convolution state and an SSM state."""
        return [i for i, kind in enumerate(self.layers_block_type) if kind == "mamba"]

    @property
    def mamba_intermediate_size(self) -> int:
        """Channels of a Mamba layer."""
        return int(self.mamba_expand * self.hidden_size)

    @property
    def mamba_chunk_size(self) -> int:
        """Name fixed by SGLang: see ``SNAPSHOT_GRID_TOKENS``."""
        return SNAPSHOT_GRID_TOKENS

    @property
    def mamba2_cache_params(self) -> "Mamba2CacheParams":
        """Shapes and dtypes of one slot, on this rank; the name is SGLang's for all recurrences.

        Convolution state [channels, width - 1], SSM state [channels, 1, state_size] (SGLang's
        layout for Mamba-1).
        """
        from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
        from sglang.srt.runtime_context import get_parallel

        return Mamba2CacheParams(
            shape=Mamba2StateShape.create_full_rank(
                tp_world_size=get_parallel().tp_size,
                intermediate_size=self.mamba_intermediate_size,
                state_size=self.mamba_d_state,
                conv_kernel=self.mamba_d_conv,
            ),
            layers=self.mamba_layer_ids,
            dtype=self._state_dtypes,
        )

    @property
    def _state_dtypes(self):  # type: ignore[no-untyped-def]
        """SGLang's choice, but convolution states are inputs as they came: in the model's dtype
        unless ``SGLANG_MAMBA_CONV_DTYPE`` says otherwise. (SGLang's default is bfloat16.)"""
        from sglang.srt.configs.mamba_utils import Mamba2StateDType, mamba2_state_dtype
        from sglang.srt.environ import envs

        chosen = mamba2_state_dtype(self)
        if envs.SGLANG_MAMBA_CONV_DTYPE.is_set() or not isinstance(self.dtype, torch.dtype):
            return chosen
        return Mamba2StateDType(conv=self.dtype, temporal=chosen.temporal)


def register_jamba() -> None:
    """Make SGLang size and cache Jamba's states in this process. Idempotent.

    Does nothing where the architecture has a registration already: a later SGLang's, or another
    plugin's. The model class itself is registered by ``register_models``.
    """
    from sglang.srt.configs.linear_attn_model_registry import (
        LinearAttnModelSpec,
        get_linear_attn_spec_by_arch,
        register_linear_attn_model,
    )
    from transformers import AutoConfig

    if get_linear_attn_spec_by_arch(ARCHITECTURE) is not None:
        return
    AutoConfig.register(JambaConfig.model_type, JambaConfig, exist_ok=True)
    register_linear_attn_model(
        LinearAttnModelSpec(
            config_class=JambaConfig,
            backend_class_name=BACKEND_CLASS,
            arch_names=[ARCHITECTURE],
            uses_mamba_radix_cache=True,
            support_mamba_cache=True,
            support_mamba_cache_extra_buffer=True,
        )
    )
