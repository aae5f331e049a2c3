# SPDX-License-Identifier: Apache-2.0
"""The SGLang attention backend `jenga_ref`: correct on every KV pool layout, in plain torch.

It reads K/V the way SGLang's own backends do: per-layer buffers `[slots, heads, dim]` from the
pool (any strides), slots from the request's row of `req_to_token`, and for window layers of a
hybrid pool (`layers_mapping`) slots translated by `translate_loc_from_full_to_swa`. So it serves
the stock `MHATokenToKVPool`, the stock `SWAKVPool` and pools that share one buffer, with equal
results.
Compute is float32; the output is cast back to the query's dtype.

Upstream counterpart: `torch_native`, which reads window layers through untranslated slots, takes no
attention sinks and ignores the logit soft cap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.runtime_context import get_schedule

from sglang_jenga.attention.paged import PaddedBatch, Span, attend_paged, plan_batches
from sglang_jenga.attention.reference import Visibility
from sglang_jenga.attention.register import BACKEND_NAME
from sglang_jenga.core.policies import KV_POLICY

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What decides a layer's gathers: layers of one kind share them within a forward."""

    rule: Visibility
    reads_encoder: bool
    in_window_pool: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forward:
    """One forward's geometry, and the gathers of each kind met so far."""

    decoder_spans: list[Span]
    encoder_spans: list[Span] | None
    rows: torch.Tensor
    window_write_slots: torch.Tensor | None
    gathers: dict[_Kind, list[PaddedBatch]] = field(default_factory=dict)


class ReferenceAttnBackend(AttentionBackend):
    """Paged attention for CPU servers and for checking other backends. See the module docstring."""

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        self.device = model_runner.device
        # HybridLinearAttnBackend copies these five from its full-attention backend.
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.kv_index_translator = getattr(model_runner, "kv_index_translator", None)
        self.max_context_len = model_runner.model_config.context_len
        self.kv_cache_dtype = model_runner.kv_cache_dtype
        self.chunk_tokens: int | None = model_runner.attention_chunk_size
        # {layer id: (index, is window layer)} on pools which keep window layers apart.
        self.layers_mapping = getattr(self.token_to_kv_pool, "layers_mapping", None)
        self.forward_metadata: _Forward | None = None

    def support_triton(self) -> bool:
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mode = forward_batch.forward_mode
        if mode.is_target_verify() or mode.is_draft_extend_v2():
            raise NotImplementedError(
                f"{BACKEND_NAME} does not run speculative decoding (forward mode {mode.name}): "
                "remove --speculative-algorithm."
            )
        num_keys = _host_list(forward_batch.seq_lens_cpu, forward_batch.seq_lens)
        if mode.is_idle():
            num_queries = [0] * len(num_keys)
        elif mode.is_decode():
            num_queries = [1] * len(num_keys)
        else:
            num_queries = _host_list(
                forward_batch.extend_seq_lens_cpu, forward_batch.extend_seq_lens
            )
        encoder_keys = None
        if forward_batch.encoder_lens is not None:
            encoder_keys = _host_list(forward_batch.encoder_lens_cpu, forward_batch.encoder_lens)

        decoder_spans, encoder_spans = [], []
        query_start = 0
        for request, (keys, queries) in enumerate(zip(num_keys, num_queries, strict=True)):
            encoder = encoder_keys[request] if encoder_keys is not None else 0
            decoder_spans.append(
                Span(
                    first_column=encoder,
                    num_keys=keys,
                    query_start=query_start,
                    num_queries=queries,
                    first_query_position=keys - queries,
                )
            )
            encoder_spans.append(
                Span(
                    first_column=0,
                    num_keys=encoder,
                    query_start=query_start,
                    num_queries=queries,
                    first_query_position=0,
                )
            )
            query_start += queries

        window_write_slots = None
        if self.layers_mapping is not None and forward_batch.out_cache_loc is not None:
            window_write_slots = self.token_to_kv_pool.translate_loc_from_full_to_swa(
                forward_batch.out_cache_loc
            )
        self.forward_metadata = _Forward(
            decoder_spans=decoder_spans,
            encoder_spans=encoder_spans if encoder_keys is not None else None,
            rows=forward_batch.req_pool_indices.long(),
            window_write_slots=window_write_slots,
        )

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, sinks, kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, sinks, kwargs)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
        sinks: torch.Tensor | None,
        extras: dict[str, Any],
    ) -> torch.Tensor:
        """`q` `[T, H * Dk]` or `[T, H, Dk]`, `k`/`v` `[T, KH, D]` -> `[T, H * Dv]`."""
        _reject_unsupported(layer, extras)
        if self.forward_metadata is None:
            raise RuntimeError(
                f"{BACKEND_NAME} was asked for layer {layer.layer_id} before "
                "init_forward_metadata: it does not know which requests are in the batch."
            )
        if save_kv_cache and k is not None and v is not None:
            self.token_to_kv_pool.set_kv_buffer(
                layer,
                KVWriteLoc.for_layer(
                    forward_batch, layer, swa_loc=self.forward_metadata.window_write_slots
                ),
                k,
                v,
            )
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = attend_paged(
            query,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            self._gathers(self._kind(layer, forward_batch)),
            scaling=layer.scaling,
            logit_cap=layer.logit_cap or 0.0,
            sinks=sinks,
        )
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _kind(self, layer: RadixAttention, forward_batch: ForwardBatch) -> _Kind:
        if layer.is_cross_attention:
            return _Kind(rule=Visibility(causal=False), reads_encoder=True, in_window_pool=False)
        in_window_pool = self.layers_mapping is not None and self.layers_mapping[layer.layer_id][1]
        stated = getattr(layer, KV_POLICY, None)
        if stated is not None:
            rule = Visibility(policy=stated)
            return _Kind(rule=rule, reads_encoder=False, in_window_pool=in_window_pool)
        window = layer.sliding_window_size
        window = window if window is not None and window > -1 else None
        causal = layer.attn_type != AttentionType.ENCODER_ONLY
        if (
            layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL
            and not forward_batch.forward_mode.is_decode()
            and get_schedule().chunked_prefill_size == -1
        ):
            # The triton backend's rule: bidirectional prompts need whole prompts in one forward,
            # and their window layers then see the whole prompt.
            causal = False
            if window is not None and any(forward_batch.extend_prefix_lens_cpu):
                raise NotImplementedError(
                    f"layer {layer.layer_id} attends in both directions within a window of "
                    f"{window} tokens, which {BACKEND_NAME} cannot do on top of a cached prefix: "
                    "start the server with --disable-radix-cache."
                )
            window = None
        return _Kind(
            rule=Visibility(
                window_tokens=window,
                chunk_tokens=self.chunk_tokens if layer.use_irope else None,
                causal=causal,
            ),
            reads_encoder=False,
            in_window_pool=in_window_pool,
        )

    def _gathers(self, kind: _Kind) -> list[PaddedBatch]:
        forward = self.forward_metadata
        assert forward is not None
        gathers = forward.gathers.get(kind)
        if gathers is None:
            spans = forward.encoder_spans if kind.reads_encoder else forward.decoder_spans
            if spans is None:
                raise RuntimeError(
                    "a cross-attention layer ran in a batch without encoder lengths: "
                    "forward_batch.encoder_lens is None."
                )
            gathers = plan_batches(
                spans,
                kind.rule,
                req_to_token=self.req_to_token_pool.req_to_token,
                rows=forward.rows,
            )
            if kind.in_window_pool:
                gathers = [
                    batch.at_slots(
                        self.token_to_kv_pool.translate_loc_from_full_to_swa(batch.slots)
                    )
                    for batch in gathers
                ]
            forward.gathers[kind] = gathers
        return gathers


def _host_list(host: Any, device: torch.Tensor) -> list[int]:
    """The batch's host copy when SGLang made one: reading `device` would wait for the GPU."""
    source = host if host is not None else device
    return source.tolist() if isinstance(source, torch.Tensor) else list(source)


def _reject_unsupported(layer: RadixAttention, extras: dict[str, Any]) -> None:
    """Fail on what would otherwise be computed wrong without a word."""
    given = sorted(name for name, value in extras.items() if value is not None)
    if given:
        raise NotImplementedError(
            f"{BACKEND_NAME} does not know the attention argument(s) {', '.join(given)} which "
            f"layer {layer.layer_id} passes: use another --attention-backend for this model."
        )
    if layer.logit_cap and layer.logit_capping_method != "tanh":
        raise NotImplementedError(
            f"{BACKEND_NAME} caps logits by tanh only; layer {layer.layer_id} asks for "
            f"{layer.logit_capping_method!r}."
        )
    if layer.xai_temperature_len > 0:
        raise NotImplementedError(
            f"{BACKEND_NAME} has no length-dependent temperature, which layer {layer.layer_id} "
            f"needs (xai_temperature_len {layer.xai_temperature_len})."
        )
