# SPDX-License-Identifier: Apache-2.0
"""Kernels that would misread an arena are refused at start, in the server's and doctor's words.

There is no GPU here: the capability of one is faked, what is asked of it is real.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt import configs
from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend
from sglang.srt.layers.attention.mamba.mamba2_metadata import Mamba2Metadata
from sglang.srt.runtime_context import get_context, get_memory

from machine import make_kinds
from sglang_jenga.core.catalog import model_kinds
from sglang_jenga.core.configs.families import FAMILIES
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kernels import (
    ATTENTION_BACKENDS,
    BLACKWELL,
    BLACKWELL_RTX,
    DELTA_NET,
    EVERY_GPU,
    HOPPER,
    LIGHTNING,
    MAMBA1,
    MAMBA2,
    SHORT_CONVOLUTION,
    UNCHECKED,
    architecture,
)
from sglang_jenga.models.jamba_config import JambaConfig
from sglang_jenga.sglang_ext import assembly, diagnose, foresee
from sglang_jenga.sglang_ext import setup as arena_setup
from sglang_jenga.sglang_ext.config import ARENA_SIZE
from sglang_jenga.sglang_ext.kernel_checks import (
    STATE_OPERATIONS,
    gpu_of,
    known_of,
    require_served,
    state_kernels,
)
from sglang_jenga.sglang_ext.kernel_table import CPU, KERNELS, rows_for
from state_machine import state_kinds

GIB = 2**30


def test_the_generation_is_the_capability_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, name in (((8, 9), "sm80"), ((9, 0), HOPPER), ((10, 3), BLACKWELL)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert gpu_of("cuda") == gpu_of(torch.device("cuda:0")) == name
    assert architecture(12) == BLACKWELL_RTX
    assert gpu_of("cpu") is None


@pytest.mark.parametrize(
    ("config", "kernels"),
    [
        (configs.GraniteMoeHybridConfig, MAMBA2),
        (configs.FalconH1Config, MAMBA2),
        (configs.NemotronHConfig, MAMBA2),
        (configs.Qwen3NextConfig, DELTA_NET),
        (configs.Lfm2Config, SHORT_CONVOLUTION),
        (configs.Lfm2MoeConfig, SHORT_CONVOLUTION),
        (JambaConfig, MAMBA1),
        (configs.KimiLinearConfig, UNCHECKED),
        (configs.ZayaConfig, UNCHECKED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_families_are_known_by_the_class_of_their_configuration(config: Any, kernels: Any) -> None:
    assert state_kernels(object.__new__(config)) is kernels


def test_lightning_is_told_apart_from_kda() -> None:
    bailing = object.__new__(configs.BailingHybridConfig)
    for kda, kernels in ((True, UNCHECKED), (False, LIGHTNING)):
        bailing.__dict__["use_kda"] = kda
        assert state_kernels(bailing) is kernels
    assert state_kernels(SimpleNamespace()) is UNCHECKED, "what nobody named was not checked"


def test_the_planner_and_the_server_agree_on_every_family() -> None:
    """A family's configuration class, by transformers' name of it, has the planner's kernels."""
    by_type = {
        "granitemoehybrid": configs.GraniteMoeHybridConfig,
        "falcon_h1": configs.FalconH1Config,
        "nemotron_h": configs.NemotronHConfig,
        "qwen3_next": configs.Qwen3NextConfig,
        "lfm2": configs.Lfm2Config,
        "jamba": JambaConfig,
    }
    recurrent = {f.model_type: f.state_kernels for f in FAMILIES if f.state_slots}
    assert set(recurrent) == set(by_type)
    for name, kernels in recurrent.items():
        assert state_kernels(object.__new__(by_type[name])) is kernels


def test_all_problems_are_said_at_once_and_none_on_a_cpu() -> None:
    plan = plan_arena(model_kinds("qwen3-next-80b"), arena_bytes=80 * GIB)
    asked: dict[str, Any] = {"backends": ("fa4", "fa4"), "states": UNCHECKED}
    with pytest.raises(ConfigError) as caught:
        require_served(plan, gpu=HOPPER, **asked)
    attention, states = str(caught.value).splitlines()
    assert "heads of 256" in attention and "the states of this model (unchecked)" in states
    require_served(plan, gpu=None, **asked)
    require_served(plan, gpu=HOPPER, backends=("flashinfer", "triton"), states=DELTA_NET)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and doctor see a GPU of compute capability 9.0."""
    for module in (arena_setup, foresee, assembly):
        monkeypatch.setattr(module, "gpu_of", lambda device: HOPPER)
    monkeypatch.setenv(ARENA_SIZE, "1GiB")


def server_says(plan: Any, states: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What sizing raises in a server whose arena came out as ``plan``."""
    sized = SimpleNamespace(plan=plan, demand=None, longest_request_tokens=4096)
    monkeypatch.setattr(arena_setup, "core_size_arena", lambda *args, **kwargs: sized)
    monkeypatch.setattr(arena_setup, "require_one_request", lambda *args, **kwargs: None)
    kinds = SimpleNamespace(specs=lambda dtype: (), window_policy=None, states=None, cross=())
    config = SimpleNamespace(context_len=4096, is_multimodal=False, is_encoder_decoder=False)
    config._jenga_setup = arena_setup.ArenaSetup(
        kinds=kinds,  # type: ignore[arg-type]
        stock=arena_setup.StockSplit(is_hybrid=False, window_layers=(), full_layers=()),
        state_kernels=states,
    )
    kvc: Any = SimpleNamespace(
        model_config=config,
        mambaish_config=None,
        kv_cache_dtype=torch.bfloat16,
        page_size=1,
        device="cuda",
        server_args=SimpleNamespace(context_length=None, max_mamba_cache_size=None),
    )
    fields = {
        "attention_backend": "fa4",
        "device": "cpu",
        "mem_fraction_static": 0.5,
        "mamba_full_memory_ratio": 0.9,
    }
    with get_context().override_server_args(**fields), pytest.raises(ConfigError) as caught:
        arena_setup.size_arena(lambda *args: None, kvc, 2 * GIB)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.usefixtures("hopper")
def test_a_server_refuses_before_it_makes_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_arena(model_kinds("qwen3-next-80b"), arena_bytes=80 * GIB)
    said = server_says(plan, LIGHTNING, monkeypatch)
    assert "heads of 256" in said and "lightning attention" in said


@pytest.mark.usefixtures("hopper")
def test_doctor_says_it_before_the_weights_are_loaded(tiny_gemma3: Path, tmp_path: Path) -> None:
    """The same model with heads of 256, on a backend that would copy them."""
    diagnose.attached()
    wide = tmp_path / "wide"
    shutil.copytree(tiny_gemma3, wide)
    config = json.loads((wide / "config.json").read_text(encoding="utf-8"))
    (wide / "config.json").write_text(json.dumps({**config, "head_dim": 256}), encoding="utf-8")

    def doctor(model: Path) -> diagnose.Verdict:
        words = ["--model-path", str(model), "--device", "cpu", "--attention-backend", "fa4"]
        return diagnose.command_line(words)

    seen = doctor(tiny_gemma3)
    assert not seen.problems
    assert seen.kernels[0].startswith("fa4 decode and extend, heads other than 256 on sm90: proved")
    refused = doctor(wide)
    assert ["heads of 256" in said for said in refused.problems] == [True, True], refused
    assert not refused.kernels
    found = diagnose._kernels(diagnose.Verdict(kernels=("a",), warnings=("b",)))
    assert found == {"check": "kernels", "ok": True, "says": ["b", "a"]}


# ---- which convolution -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "device", "triton"),
    [(state_kinds(), "cuda", True), (state_kinds(), "cpu", False), (make_kinds(), "cuda", False)],
    ids=["states on a GPU", "states on a CPU", "no states"],
)
def test_states_on_a_gpu_are_convolved_by_triton(kinds: Any, device: str, triton: bool) -> None:
    """SGLang's own backend hands the choice to the mixer, which takes it from the layout's name."""
    given: list[bool] = []

    def mixer(*, use_triton_causal_conv: bool, **rest: Any) -> tuple[None, None, None]:
        given.append(use_triton_causal_conv)
        return None, None, None

    backend: Any = object.__new__(Mamba2AttnBackend)
    backend.forward_metadata = object.__new__(Mamba2Metadata)
    backend.req_to_token_pool = SimpleNamespace(mamba2_layer_cache=lambda layer_id: None)
    with get_context().override_server_args(enable_page_major_kv_layout=False):
        assembly.choose_strided_kernels(kinds, device)
        assert get_memory().enable_page_major_kv_layout is triton
        backend.forward(
            SimpleNamespace(forward=mixer),
            None,
            None,
            0,
            SimpleNamespace(mamba_track_mask=None),
        )
    assert given == [triton]


def test_pools_are_built_with_that_choice_made(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[Any, str]] = []
    monkeypatch.setattr(
        assembly, "choose_strided_kernels", lambda kinds, device: chosen.append((kinds, device))
    )
    monkeypatch.setattr(assembly, "gpu_of", lambda device: HOPPER)
    for name in ("ArenaBuffer", "build_rows", "build_allocator", "_snapshot_grid_tokens"):
        monkeypatch.setattr(
            assembly, name, lambda *args, **kwargs: SimpleNamespace(get_kvcache=lambda: None)
        )
    monkeypatch.setattr(assembly.decode, "install", lambda device: None)
    monkeypatch.setattr(assembly.retraction, "install", lambda: None)
    kinds = state_kinds()
    specs = kinds.specs(torch.float32)
    config = SimpleNamespace(context_len=64)
    config._jenga_setup = SimpleNamespace(
        kinds=kinds, plan=plan_arena(specs, arena_bytes=2**22), demand=1, state_kernels=MAMBA2
    )
    kvc: Any = SimpleNamespace(model_config=config, device="cuda", kv_cache_dtype=torch.float32)
    with get_context().override_server_args(attention_backend="triton", page_size=1):
        assembly.build_pools(kvc, SimpleNamespace(max_running_requests=2))
    assert chosen == [(kinds, "cuda")]


# ---- what is known -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", [*EVERY_GPU, CPU])
@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_a_start_says_how_its_kernels_were_checked(backend: str, where: str) -> None:
    gpu = None if where == CPU else where
    lines = known_of(backends=(backend, backend), gpu=gpu, states=None)
    assert any(line.startswith(f"{backend} ") and f" on {where}: " in line for line in lines)
    assert any(line.startswith("pools ") for line in lines)
    assert not [line for line in lines if "refused" in line.split(":")[1]]
    if not rows_for(backend, where):
        assert f"{backend} on {where}: unchecked, no row speaks of it" in lines


def test_only_the_phase_that_a_backend_serves_is_told() -> None:
    lines = known_of(backends=("triton", "trtllm_mha"), gpu=HOPPER, states=None)
    told = [line for line in lines if not line.startswith("pools")]
    assert [line.split(":")[0] for line in told] == [
        "trtllm_mha decode (XQA) on sm90",
        "triton extend on sm90",
    ]


@pytest.mark.parametrize("kernels", [MAMBA1, MAMBA2, DELTA_NET, SHORT_CONVOLUTION, LIGHTNING])
def test_the_kernels_of_states_are_told(kernels: Any) -> None:
    lines = known_of(backends=("triton", "triton"), gpu=HOPPER, states=kernels)
    states = [line for line in lines if line.startswith("states")]
    assert len(states) == len(STATE_OPERATIONS.get(kernels.name, ("why",)))
    if kernels.limit_elements is not None:
        assert "a larger arena is refused" in states[0]


def test_the_table_has_every_operation_that_is_asked_for() -> None:
    operations = {row.operation for row in KERNELS if row.backend == "states"}
    assert {name for names in STATE_OPERATIONS.values() for name in names} <= operations


def test_every_backend_that_is_accepted_has_a_row_for_some_machine() -> None:
    assert set(ATTENTION_BACKENDS) <= {row.backend for row in KERNELS}
