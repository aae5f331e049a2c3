# SPDX-License-Identifier: Apache-2.0
"""The platform is active only on a plain CPU, and its tables fit the installed SGLang or say so."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry

import sglang_portable_cpu
from sglang_portable_cpu import model_patches, patches, plugin
from sglang_portable_cpu.patches import PATCHES, PatchError
from sglang_portable_cpu.platform import PortableCpuPlatform


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


def test_it_activates_on_a_plain_cpu(no_accelerator):
    path = sglang_portable_cpu.activate()
    assert pkgutil.resolve_name(path) is PortableCpuPlatform


def test_it_yields_to_an_accelerator(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert sglang_portable_cpu.activate() is None


def test_it_yields_to_the_in_tree_cpu_engine(no_accelerator, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert sglang_portable_cpu.activate() is None


@pytest.mark.parametrize("group", ["sglang.srt.platforms", "sglang.srt.plugins"])
def test_both_entry_points_are_installed_under_one_name(group):
    (found,) = entry_points(group=group, name=sglang_portable_cpu.ENTRY_POINT)
    assert callable(found.load())


def test_on_another_platform_the_plugin_does_nothing(monkeypatch):
    import sglang.srt.platforms as platforms

    monkeypatch.setattr(platforms, "_current_platform", object())
    monkeypatch.setattr(HookRegistry, "register", lambda *a: pytest.fail("registered a hook"))
    plugin.load()


@pytest.fixture
def loaded(monkeypatch):
    """Plugins loaded as a server loads them, on this platform."""
    import sglang.srt.platforms as platforms

    if not isinstance(platforms.current_platform, PortableCpuPlatform):
        pytest.skip(f"this machine serves on {platforms.current_platform}, not on a plain CPU")
    load_plugins()


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_every_patched_function_exists_and_takes_what_the_table_says(patch, loaded):
    original = patches._originals[patch.target]
    if patch.parameters is not None:
        assert tuple(inspect.signature(original).parameters) == patch.parameters


@pytest.mark.parametrize(
    "patch", [p for p in PATCHES if p.parameters is not None], ids=lambda patch: patch.target
)
def test_a_replacement_takes_the_parameters_of_what_it_replaces(patch):
    names = tuple(inspect.signature(patch.hook).parameters)
    if not patch.wraps:
        assert names == patch.parameters
    else:  # what any function takes, or exactly what this one does
        assert names[1:] in (("args", "kwargs"), patch.parameters)


def test_every_patch_is_in_effect_after_the_plugins_loaded(loaded):
    patches.require_installed()


SUPPLIED = [patch for patch in PATCHES if patch.stands_for is not None]


@pytest.mark.parametrize("patch", SUPPLIED, ids=lambda patch: patch.target)
def test_a_supplied_name_is_bound_where_it_is_read(patch, loaded):
    assert pkgutil.resolve_name(patch.target) is patch.hook


def test_the_operators_of_state_layers_reach_the_modules_that_imported_them(loaded):
    from sglang.srt.layers.attention import hybrid_linear_attn_backend
    from sglang.srt.layers.attention.mamba import causal_conv1d, mamba

    from sglang_portable_cpu import ssm_ops

    with pytest.raises(NotImplementedError, match="return_track_states"):
        mamba.mamba_chunk_scan_combined(*[torch.zeros(1)] * 5, chunk_size=1)
    pool = torch.arange(3.0)[:, None]
    track = hybrid_linear_attn_backend.track_mamba_states_if_needed
    assert track is not ssm_ops.track_mamba_states_if_needed, "the hook wraps it"
    track(pool, pool.clone(), torch.tensor([2]), torch.tensor([True]), torch.tensor([1]), 1)
    assert pool.flatten().tolist() == [0.0, 2.0, 2.0]
    # SGLang's own entry point falls back to the triton one, which is replaced.
    out = causal_conv1d.causal_conv1d_update(
        torch.ones(1, 1), torch.ones(1, 1, 1), torch.full((1, 2), 3.0)
    )
    assert out.item() == 6.0


def test_a_norm_on_the_current_device_is_built_without_a_driver(loaded):
    assert torch.get_device_module() is torch.cpu
    assert torch.get_device_module("cuda") is torch.cuda
    torch.ones(1, device=torch.get_device_module().current_device())


def linear(cls, **sizes):
    """A layer of `cls` with a weight and nothing of what SGLang's constructors need."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    layer.weight = torch.nn.Parameter(torch.zeros(1))
    vars(layer).update(sizes)
    return layer


def test_lora_layers_are_built_without_a_driver(loaded):
    from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
    from sglang.srt.lora import lora_manager

    column = lora_manager.get_lora_layer(
        linear(ColumnParallelLinear, output_partition_sizes=[6]), lora_backend=None
    )
    assert column.output_offset_cpu.tolist() == [0, 6]
    row = lora_manager.get_lora_layer(linear(RowParallelLinear, output_size=5), lora_backend=None)
    row.set_lora_info(torch.zeros(1, 2, 3), torch.zeros(1, 5, 2))
    assert row.output_offset_cpu.tolist() == [0, 5]


def test_a_batch_with_adapters_is_described_without_a_driver(loaded):
    from sglang.srt.lora.backend.torch_backend import TorchNativeLoRABackend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        batch_size=3,
        extend_seq_lens=torch.tensor([4, 1, 2], dtype=torch.int32),
        extend_seq_lens_cpu=[4, 1, 2],
    )
    backend = TorchNativeLoRABackend(max_loras_per_batch=2, device=torch.device("cpu"))
    backend.prepare_lora_batch(batch, [1, 1, 0], [0, 8], [0.0, 2.0], use_cuda_graph=False)
    info = backend.batch_info
    assert info.seg_lens_cpu.tolist() == [5, 2]
    assert info.weight_indices_cpu.tolist() == [1, 0]
    assert (info.lora_ranks_cpu.tolist(), info.scalings_cpu.tolist()) == ([0, 8], [0.0, 2.0])


@pytest.mark.parametrize("patch", model_patches.MODEL_PATCHES, ids=lambda patch: patch.class_path)
def test_every_patched_model_class_still_builds_the_submodule(patch, loaded):
    cls = pkgutil.resolve_name(patch.class_path)
    assert f"self.{patch.submodule}" in inspect.getsource(cls.__init__)


def test_a_function_that_is_gone_is_named_with_the_reason(monkeypatch):
    gone = dataclasses.replace(PATCHES[0], target="sglang.srt.utils.no_such_function")
    monkeypatch.setattr(patches, "PATCHES", (gone,))
    with pytest.raises(PatchError, match=r"no_such_function.*Gemma-2"):
        patches.register()


def test_a_function_with_other_parameters_is_refused_with_both_lists(monkeypatch):
    changed = dataclasses.replace(PATCHES[0], target="sglang.srt.utils.is_cpu")
    monkeypatch.setattr(patches, "PATCHES", (changed,))
    with pytest.raises(PatchError, match="full_logits, final_logit_softcapping"):
        patches.register()


def test_a_supplied_name_that_sglang_binds_itself_is_refused(monkeypatch):
    bound = dataclasses.replace(SUPPLIED[0], hook=lambda: None)
    monkeypatch.setattr(patches, "PATCHES", (bound,))
    monkeypatch.setattr(
        pkgutil.resolve_name(bound.target.rpartition(".")[0]), "causal_conv1d_fn", 1
    )
    with pytest.raises(PatchError, match="binds the name itself"):
        patches.register()


@pytest.mark.parametrize(
    ("module", "why"),
    [("sglang.srt.no_such_module", "this SGLang has no"), ("sglang.version", "does not use")],
)
def test_a_supplied_name_that_nothing_reads_is_refused(module, why, monkeypatch):
    moved = dataclasses.replace(SUPPLIED[0], target=f"{module}.causal_conv1d_fn")
    monkeypatch.setattr(patches, "PATCHES", (moved,))
    with pytest.raises(PatchError, match=why):
        patches.register()


def test_a_plugin_that_did_not_load_stops_the_server_and_says_how_to_load_it(monkeypatch):
    monkeypatch.setattr(patches, "_originals", {})
    with pytest.raises(PatchError, match="SGLANG_PLUGINS leaves it out"):
        PortableCpuPlatform().apply_server_args_defaults(None)
    with pytest.raises(PatchError, match="SGLANG_PLUGINS leaves it out"):
        PortableCpuPlatform().post_load_model(torch.nn.Identity())


def test_a_hook_that_was_not_applied_stops_the_server(loaded, monkeypatch):
    target = PATCHES[0].target
    monkeypatch.setitem(patches._originals, target, pkgutil.resolve_name(target))
    with pytest.raises(PatchError, match="registered but not in effect"):
        patches.require_installed()
