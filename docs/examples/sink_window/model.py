# SPDX-License-Identifier: Apache-2.0
"""The model: Llama, some of whose layers state the policy.

Served with ``SGLANG_EXTERNAL_MODEL_PACKAGE=sink_window``. SGLang loads every module of the package
and takes the model from ``EntryClass``.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.models.llama import LlamaForCausalLM

from sink_window.policy import SinkWindow


class SinkLlamaForCausalLM(LlamaForCausalLM):
    """config.json is that of a Llama, with ``sink_layers`` (their numbers), ``sink_tokens`` and
    ``window_tokens``."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        policy = SinkWindow(sink_tokens=config.sink_tokens, window_tokens=config.window_tokens)
        for number in config.sink_layers:
            self.model.layers[number].self_attn.attn.kv_policy = policy


EntryClass = SinkLlamaForCausalLM
