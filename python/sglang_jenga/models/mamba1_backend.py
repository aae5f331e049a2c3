# SPDX-License-Identifier: Apache-2.0
"""Where the states of Mamba-1 layers are: read, advanced and written back by slot index.

The backend beside the attention backend of a hybrid model (SGLang's ``HybridLinearAttnBackend``).
Which slot a request has, when a slot is cleared or copied and which states a radix cache keeps are
SGLang's decisions; they arrive in the batch. A layer calls :meth:`Mamba1AttnBackend.convolve` and
:meth:`Mamba1AttnBackend.scan`; each advances its state in place and, where the batch asks for a
snapshot ("tracking", the ``extra_buffer`` strategies), copies the state at one position of the
sequence to a second slot.

Pools are views of any strides: they are only indexed. Slot 0 is SGLang's padding slot, which nobody
reads; a negative slot (padding in a CUDA graph, or a destination that was freed meanwhile) is
written to slot 0 instead of being looked at, which would wait for a GPU.

Runs on any device. On CUDA it is right and slow: prefill launches a kernel for each token.
Upstream seam: a Mamba-1 backend in ``layers/attention/linear`` with snapshots (SGLang's own
``MambaMixer1`` has neither those nor a CPU path).
"""

from dataclasses import dataclass

import torch
from sglang.srt.layers.attention.hybrid_linear_attn_backend import MambaAttnBackendBase
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_spec, mamba_cache_chunk_size

from sglang_jenga.models.selective_scan import (
    convolve,
    convolve_sequence,
    scan_sequence,
    scan_step,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request in an extend batch.

    Attributes:
        start: its first row in the batch's tokens.
        num_tokens: how many rows it has.
        resumes: whether tokens precede these, so that its slot holds a state.
        snapshot_tokens: after how many of these tokens the state is copied; None: it is not.
    """

    start: int
    num_tokens: int
    resumes: bool
    snapshot_tokens: int | None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class Mamba1AttnBackend(MambaAttnBackendBase):
    """States of the Mamba-1 layers of one model. Raises ``ValueError`` with speculative decoding:
    states of rejected tokens could not be taken back."""

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: ModelRunner) -> None:
        if get_spec().speculative_algorithm is not None:
            raise ValueError(
                "speculative decoding is not supported with Mamba-1 layers: their states cannot be "
                "taken back when drafted tokens are rejected. Drop --speculative-algorithm."
            )
        super().__init__(model_runner)
        # Read by the base class, for snapshots of a layout that is not used here.
        self.conv_states_shape = self.req_to_token_pool.mamba_pool.mamba_cache.conv[0].shape
        self._rows: list[Row] | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        decode = forward_batch.logical_forward_mode.is_decode_or_idle()
        self._rows = None if decode else rows_of(forward_batch)

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None:
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        self._rows = None

    def convolve(
        self,
        layer_id: int,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:
        """Causal convolution and SiLU over the batch's tokens, [tokens, channels] float32.

        ``x`` is [tokens, channels], ``weight`` [channels, width], ``bias`` [channels] or None.
        """
        # [slots, channels, width - 1], seen as [slots, width - 1, channels]
        pool = self._layer_cache(layer_id).conv[0].transpose(1, 2)
        slots = self._slots()
        before = pool[slots].to(x.dtype)
        if self._rows is None:
            windows = torch.cat([before, x[:, None]], 1)
            self._write_decoded(pool, slots, windows[:, 1:], forward_batch)
            return convolve(windows.unbind(1), weight, bias)

        out = torch.zeros_like(x, dtype=torch.float32)
        after, snapshots = [], {}
        past = before.shape[1]
        for i, row in enumerate(self._rows):
            history = before[i] if row.resumes else torch.zeros_like(before[i])
            padded = torch.cat([history, x[row.start : row.end]])
            out[row.start : row.end] = convolve_sequence(padded, weight, bias)
            after.append(padded[row.num_tokens :])
            if row.snapshot_tokens is not None:
                snapshots[i] = padded[row.snapshot_tokens : row.snapshot_tokens + past]
        self._write_extended(pool, slots, after, snapshots)
        return out

    def scan(
        self,
        layer_id: int,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:
        """Selective scan over the batch's tokens, [tokens, channels] float32.

        ``x`` and ``dt`` (after softplus) are [tokens, channels]; ``A`` is [channels, state_size],
        negative; ``B`` and ``C`` are [tokens, state_size].
        """
        x, dt, A, B, C = x.float(), dt.float(), A.float(), B.float(), C.float()
        pool = self._layer_cache(layer_id).temporal.select(2, 0)  # [slots, channels, state_size]
        slots = self._slots()
        before = pool[slots].float()
        if self._rows is None:
            out, states = scan_step(before, x, dt, A, B, C)
            self._write_decoded(pool, slots, states, forward_batch)
            return out

        out = torch.zeros_like(x)
        after, snapshots = [], {}
        for i, row in enumerate(self._rows):
            state = before[i] if row.resumes else torch.zeros_like(before[i])
            cut = row.start + (row.snapshot_tokens or 0)
            for part in (slice(row.start, cut), slice(cut, row.end)):
                if row.snapshot_tokens is not None and part.start == cut:
                    snapshots[i] = state
                out[part], state = scan_sequence(state, x[part], dt[part], A, B[part], C[part])
            after.append(state)
        self._write_extended(pool, slots, after, snapshots)
        return out

    def _layer_cache(self, layer_id: int):  # type: ignore[no-untyped-def]
        return self.req_to_token_pool.mamba2_layer_cache(layer_id)

    def _slots(self) -> torch.Tensor:
        return self.forward_metadata.mamba_cache_indices.long().clamp(min=0)

    def _destinations(self) -> torch.Tensor:
        return self.forward_metadata.mamba_track_indices.long().clamp(min=0)

    def _write_decoded(
        self,
        pool: torch.Tensor,
        slots: torch.Tensor,
        states: torch.Tensor,
        forward_batch: ForwardBatch,
    ) -> None:
        states = states.to(pool.dtype)
        pool[slots] = states
        if forward_batch.mamba_track_mask is not None:
            tracked = forward_batch.mamba_track_mask[: slots.shape[0]]
            pool[self._destinations()[: slots.shape[0]] * tracked] = states

    def _write_extended(
        self,
        pool: torch.Tensor,
        slots: torch.Tensor,
        after: list[torch.Tensor],
        snapshots: dict[int, torch.Tensor],
    ) -> None:
        """``after`` has one state for each row, ``snapshots`` those of some rows."""
        if after:
            pool[slots] = torch.stack(after).to(pool.dtype)
        if snapshots:
            rows = torch.tensor(list(snapshots), device=pool.device)
            states = torch.stack(list(snapshots.values()))
            pool[self._destinations()[rows]] = states.to(pool.dtype)


def rows_of(forward_batch: ForwardBatch) -> list[Row]:
    """The requests of an extend batch, in order.

    A snapshot is at the last multiple of the snapshot grid up to the position that the scheduler
    names, counted from the first token of this extend: the rule of
    ``ForwardBatch.mamba_track_aligned_lens``, on the host.
    """
    lengths = _host(forward_batch.extend_seq_lens_cpu, forward_batch.extend_seq_lens)
    prefixes = _host(forward_batch.extend_prefix_lens_cpu, forward_batch.extend_prefix_lens)
    tracked = _host(forward_batch.mamba_prefill_track_mask_cpu, forward_batch.mamba_track_mask)
    targets = _host(forward_batch.mamba_track_seqlens_cpu, forward_batch.mamba_track_seqlens)
    rows, start = [], 0
    for i, (num_tokens, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        snapshot_tokens = None
        if tracked and targets and tracked[i]:
            grid = mamba_cache_chunk_size()
            snapshot_tokens = (targets[i] - prefix) // grid * grid
        rows.append(
            Row(
                start=start,
                num_tokens=num_tokens,
                resumes=prefix > 0,
                snapshot_tokens=snapshot_tokens,
            )
        )
        start += num_tokens
    return rows


def _host(mirror: list[int] | None, tensor: torch.Tensor | None) -> list[int]:
    """The scheduler's copy on the host where there is one; reading the tensor waits for a GPU."""
    if mirror is not None:
        return [int(value) for value in mirror]
    return [] if tensor is None else tensor.tolist()
