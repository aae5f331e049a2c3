# SPDX-License-Identifier: Apache-2.0
"""The torch replacements compute what the functions they stand for compute."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import StandardTopKOutput

from sglang_portable_cpu import model_patches, ops
from sglang_portable_cpu.patches import PatchError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_cap_bends_logits_in_place(dtype):
    logits = torch.linspace(-90, 90, 64).view(4, 16).to(dtype)
    expected = 30.0 * torch.tanh(logits.float() / 30.0)
    out = ops.softcap_inplace_logits(logits, 30.0)
    assert out.data_ptr() == logits.data_ptr()
    tolerance = 1e-5 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(logits.float(), expected, rtol=1e-2, atol=tolerance)


def test_the_last_slot_of_a_cached_prefix_and_minus_one_without_one():
    req_to_token = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]], dtype=torch.int32)
    out = ops.get_last_loc(req_to_token, torch.tensor([1, 0]), torch.tensor([3, 0]))
    assert out.tolist() == [11, -1]


def test_pinning_without_a_device_returns_the_tensor():
    tensor = torch.ones(3)
    assert ops.pin_memory(tensor) is tensor


def test_a_function_without_pinning_builds_what_it_would_build_pinned():
    def build(size, *, device):
        with torch.device(device):
            return torch.zeros(size, dtype=torch.int32, pin_memory=True), torch.ones(size)

    zeros, ones = ops.without_pinning(build, 3, device="cpu")
    assert (zeros.tolist(), zeros.dtype, zeros.is_pinned()) == ([0, 0, 0], torch.int32, False)
    assert ones.tolist() == [1.0] * 3
    # A device that a caller sets is still respected.
    assert ops.without_pinning(build, 3, device="meta")[1].device.type == "meta"


def experts(scale_input: bool, weights: torch.Tensor):
    """Stand-in for SGLang's torch experts: multiplies by the weight last, never first."""
    seen = {}

    def original(layer, x, topk_output, config):
        assert not config.apply_router_weight_on_input
        seen["x"] = x
        return (x * topk_output.topk_weights).relu() + 1.0

    config = MoeRunnerConfig(apply_router_weight_on_input=scale_input)
    topk = StandardTopKOutput(weights, torch.zeros_like(weights, dtype=torch.int32), weights)
    return original, topk, config, seen


def test_the_router_weight_moves_to_the_input_where_the_model_wants_it():
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    weights = torch.tensor([[0.5], [0.25]])
    original, topk, config, seen = experts(True, weights)
    out = ops.moe_forward(original, SimpleNamespace(), x, topk, config)
    assert torch.equal(seen["x"], x * weights)
    assert torch.equal(out, (x * weights).relu() + 1.0)


def test_other_models_reach_the_experts_untouched():
    x, weights = torch.ones(2, 2), torch.full((2, 2), 0.5)
    original, topk, config, seen = experts(False, weights)
    ops.moe_forward(original, SimpleNamespace(), x, topk._replace(topk_weights=weights), config)
    assert seen["x"] is x


def test_a_weighted_input_for_two_experts_is_refused():
    original, topk, config, _ = experts(True, torch.ones(3, 2))
    with pytest.raises(NotImplementedError, match="2 experts per token"):
        ops.moe_forward(original, SimpleNamespace(), torch.ones(3, 4), topk, config)


class Rotary(torch.nn.Module):
    def forward(self, positions, query, key):
        return query * 2, key * 3


class Attention(torch.nn.Module):
    def __init__(self, rotary):
        super().__init__()
        self.rotary_emb = rotary


class AttentionOfAnotherRelease(torch.nn.Module):
    pass


def patched_as_llama4(monkeypatch, cls):
    path = f"{cls.__module__}:{cls.__qualname__}"
    as_here = dataclasses.replace(model_patches.MODEL_PATCHES[0], class_path=path)
    monkeypatch.setattr(model_patches, "MODEL_PATCHES", (as_here,))


def test_llama4_rotates_in_place_once_although_layers_share_the_module(monkeypatch):
    patched_as_llama4(monkeypatch, Attention)
    rotary = Rotary()
    model = torch.nn.ModuleList([Attention(rotary), Attention(rotary), Attention(None)])
    model_patches.apply(model)
    both = torch.ones(2, 8)
    query, key = both.split([4, 4], dim=-1)
    rotary(None, query, key)
    assert both.tolist() == [[2.0] * 4 + [3.0] * 4] * 2


def test_a_llama4_without_the_module_stops_the_server(monkeypatch):
    patched_as_llama4(monkeypatch, AttentionOfAnotherRelease)
    with pytest.raises(PatchError, match="has no rotary_emb"):
        model_patches.apply(torch.nn.ModuleList([AttentionOfAnotherRelease()]))
