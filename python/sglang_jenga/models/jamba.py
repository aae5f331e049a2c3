# SPDX-License-Identifier: Apache-2.0
"""Jamba (AI21): Mamba-1 layers, some attention layers without positions, some MLPs of experts.

SGLang 0.5.23 has no file for it. Layers and names follow transformers' ``modeling_jamba``. States
live in SGLang's own pools (see ``jamba_config`` and ``mamba1_backend``); sharding over tensor
parallel ranks is by channels, as SGLang's parallel linear layers do it. Limits: one pipeline stage,
no attention data parallelism, no speculative decoding.
"""

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.srt.model_loader.weight_utils import sharded_weight_loader
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix, set_weight_attrs
from torch import nn
from torch.nn import functional

from sglang_jenga.models.jamba_config import JambaConfig
from sglang_jenga.models.jamba_weights import load_completely


class JambaConv(nn.Module):
    """Parameters of the short convolution, this rank's channels; the state is the backend's."""

    def __init__(self, channels: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = _sharded(torch.empty(channels, 1, width))
        self.register_parameter("bias", _sharded(torch.empty(channels)) if bias else None)


class JambaMamba(nn.Module):
    """The Mamba-1 mixer, with Jamba's norms on the time step, B and C."""

    def __init__(
        self,
        config: JambaConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.layer_id = layer_id
        channels = config.mamba_intermediate_size
        own_channels = channels // get_parallel().tp_size
        self.sizes = [config.mamba_dt_rank, config.mamba_d_state, config.mamba_d_state]

        def options(name: str) -> dict[str, object]:
            return {"quant_config": quant_config, "prefix": add_prefix(name, prefix)}

        self.in_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [channels, channels],
            bias=config.mamba_proj_bias,
            **options("in_proj"),
        )
        self.conv1d = JambaConv(own_channels, config.mamba_d_conv, bias=config.mamba_conv_bias)
        self.x_proj = RowParallelLinear(channels, sum(self.sizes), bias=False, **options("x_proj"))
        # The bias is added in float32, before softplus.
        self.dt_proj = ColumnParallelLinear(
            config.mamba_dt_rank, channels, bias=True, skip_bias_add=True, **options("dt_proj")
        )
        self.A_log = _sharded(torch.empty(own_channels, config.mamba_d_state, dtype=torch.float32))
        self.D = _sharded(torch.empty(own_channels, dtype=torch.float32))
        self.dt_layernorm = RMSNorm(config.mamba_dt_rank, eps=config.rms_norm_eps)
        self.b_layernorm = RMSNorm(config.mamba_d_state, eps=config.rms_norm_eps)
        self.c_layernorm = RMSNorm(config.mamba_d_state, eps=config.rms_norm_eps)
        self.out_proj = RowParallelLinear(
            channels, config.hidden_size, bias=config.mamba_proj_bias, **options("out_proj")
        )

    def forward(self, hidden: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """[tokens, hidden] to the same."""
        states = get_attn_backend().linear_attn_backend
        x, gate = self.in_proj(hidden)[0].chunk(2, dim=-1)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        x = states.convolve(self.layer_id, x, weight, bias, forward_batch).to(hidden.dtype)

        dt, B, C = self.x_proj(x)[0].split(self.sizes, dim=-1)
        # Norm kernels want rows without gaps.
        dt, dt_bias = self.dt_proj(self.dt_layernorm(dt.contiguous()))
        B, C = self.b_layernorm(B.contiguous()), self.c_layernorm(C.contiguous())
        dt = functional.softplus(dt.float() + dt_bias.float())

        A = -torch.exp(self.A_log)
        y = states.scan(self.layer_id, x, dt, A, B, C, forward_batch)
        y = (y + self.D * x.float()) * functional.silu(gate.float())
        return self.out_proj(y.to(hidden.dtype))[0]


class JambaAttention(nn.Module):
    """Grouped-query attention without positions: the Mamba layers tell the order."""

    def __init__(
        self,
        config: JambaConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        tp_size = get_parallel().tp_size
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.own_heads, self.own_kv_heads = heads // tp_size, max(1, kv_heads // tp_size)
        self.sizes = [n * head_dim for n in (self.own_heads, self.own_kv_heads, self.own_kv_heads)]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            head_dim,
            heads,
            kv_heads,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            heads * head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.attn = RadixAttention(
            self.own_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=self.own_kv_heads,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    def forward(self, hidden: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """[tokens, hidden] to the same."""
        q, k, v = self.qkv_proj(hidden)[0].split(self.sizes, dim=-1)
        return self.o_proj(self.attn(q, k, v, forward_batch))[0]


class JambaMLP(nn.Module):
    """The dense MLP, SiLU-gated."""

    def __init__(
        self, config: JambaConfig, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("gate_up_proj", prefix),
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("down_proj", prefix),
        )
        self.act_fn = SiluAndMul()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to the same."""
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden)[0]))[0]


class JambaExperts(nn.Module):
    """MLPs of which each token takes ``num_experts_per_tok``. Their weights are probabilities over
    all experts and are not made to sum to one."""

    def __init__(
        self,
        config: JambaConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.router = ReplicatedLinear(
            config.hidden_size,
            config.num_experts,
            bias=False,
            quant_config=None,
            prefix=add_prefix("router", prefix),
        )
        self.topk = TopK(top_k=config.num_experts_per_tok, layer_id=layer_id, renormalize=False)
        self.experts = FusedMoE(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            layer_id=layer_id,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            reduce_results=True,
            quant_config=quant_config,
            prefix=add_prefix("experts", prefix),
        )
        self.topk.bind_runner_backend(self.experts.runner_backend)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to the same."""
        return self.experts(hidden, self.topk(hidden, self.router(hidden)[0]))


class JambaLayer(nn.Module):
    """A mixer and an MLP, each behind a norm and beside a residual. The mixer's name, ``mamba`` or
    ``self_attn``, is part of checkpoints."""

    def __init__(
        self,
        config: JambaConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        attends = config.layers_block_type[layer_id] == "attention"
        self.mixer_name = "self_attn" if attends else "mamba"
        mixer_class = JambaAttention if attends else JambaMamba
        mixer = mixer_class(config, layer_id, quant_config, add_prefix(self.mixer_name, prefix))
        self.add_module(self.mixer_name, mixer)
        ff_prefix = add_prefix("feed_forward", prefix)
        self.feed_forward: nn.Module
        if config.layers_num_experts[layer_id] > 1:
            self.feed_forward = JambaExperts(config, layer_id, quant_config, ff_prefix)
        else:
            self.feed_forward = JambaMLP(config, quant_config, ff_prefix)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_ff_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, forward_batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The MLP's output and the residual that it has yet to be added to."""
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = getattr(self, self.mixer_name)(hidden, forward_batch)
        hidden, residual = self.pre_ff_layernorm(hidden, residual)
        return self.feed_forward(hidden), residual


class JambaModel(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(
        self, config: JambaConfig, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=add_prefix("embed_tokens", prefix)
        )
        self.layers = nn.ModuleList(
            JambaLayer(config, i, quant_config, add_prefix(f"layers.{i}", prefix))
            for i in range(config.num_hidden_layers)
        )
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """Hidden states [tokens, hidden] for the LM head."""
        hidden = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, forward_batch)
        return self.final_layernorm(hidden, residual)[0]


class JambaForCausalLM(nn.Module):
    """Jamba with its language modelling head."""

    def __init__(
        self,
        config: JambaConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        _refuse(config)
        self.config = config
        self.model = JambaModel(config, quant_config, add_prefix("model", prefix))
        if config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=quant_config,
                prefix=add_prefix("lm_head", prefix),
            )
        self.logits_processor = LogitsProcessor(config)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
    ) -> Any:
        """SGLang's logits; ``positions`` are not used, no layer has any."""
        hidden = self.model(input_ids, forward_batch, input_embeds)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint, completely, and return the names of its tensors (``ValueError``
        otherwise)."""
        return load_completely(self, weights, self.config)


def _sharded(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter whose first dimension is this rank's part of the checkpoint's."""
    param = nn.Parameter(tensor, requires_grad=False)
    set_weight_attrs(param, {"weight_loader": sharded_weight_loader(0, parallel_group="tp")})
    return param


def _refuse(config: JambaConfig) -> None:
    """Raise ``ValueError`` for what would be computed wrongly or not at all."""
    parallel = get_parallel()
    if config.hidden_act != "silu":
        raise ValueError(f"Jamba with hidden_act {config.hidden_act!r}: only 'silu' is supported")
    if parallel.pp_size > 1:
        raise ValueError(f"Jamba has one pipeline stage, --pp-size is {parallel.pp_size}: use 1")
    if parallel.attn_tp_size != parallel.tp_size:
        raise ValueError(
            f"Jamba's Mamba layers are sharded over all {parallel.tp_size} ranks, attention over "
            f"{parallel.attn_tp_size}: drop --enable-dp-attention"
        )
    if config.mamba_intermediate_size % parallel.tp_size:
        raise ValueError(
            f"Jamba's {config.mamba_intermediate_size} Mamba channels cannot be shared by "
            f"{parallel.tp_size} ranks: choose --tp-size that divides them"
        )


EntryClass = JambaForCausalLM
