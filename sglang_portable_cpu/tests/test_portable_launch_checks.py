# SPDX-License-Identifier: Apache-2.0
"""What would end a server after its processes were started is said before any is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.plugins import load_plugins

from sglang_portable_cpu import launch_checks

BIND = "SGLANG_CPU_OMP_THREADS_BIND"


@pytest.fixture(autouse=True)
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugins()
    monkeypatch.delenv(BIND, raising=False)
    monkeypatch.setattr("sglang.srt.utils.common.get_cpu_ids_by_node", lambda: ["0,1", "2,3"])


@pytest.mark.parametrize("ranks", [(3, 1, 1), (1, 3, 1), (2, 2, 1)])
def test_more_ranks_than_nodes_are_refused_with_a_setting_that_helps(
    ranks: tuple[int, int, int],
) -> None:
    count = ranks[0] * ranks[1]
    with pytest.raises(ValueError, match=f"are {count} ranks.*has 2 NUMA nodes") as caught:
        launch_checks.require_cores(*ranks)
    assert f"set {BIND} to the cores of each rank" in str(caught.value)


def test_ranks_with_cores_of_their_own_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_checks.require_cores(2, 1, 1)
    monkeypatch.setenv(BIND, "0|1|0")
    launch_checks.require_cores(3, 1, 1)
    with pytest.raises(ValueError, match=f"are 4 ranks.*{BIND}='0.1.0' names 3"):
        launch_checks.require_cores(4, 1, 1)


def test_sglang_itself_refuses_these_ranks_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it does not any more, the check can go."""
    from sglang.srt.utils import numa_utils

    monkeypatch.setattr(numa_utils, "get_cpu_ids_by_node", lambda: ["0,1", "2,3"])
    with pytest.raises(AssertionError, match="total number of ranks"):
        numa_utils.init_threads_binding(numa_index=0, world_size=3)


def test_attention_replicas_are_refused() -> None:
    launch_checks.require_no_attention_replicas(1)
    with pytest.raises(ValueError, match=r"--enable-dp-attention.*does not run on a plain CPU"):
        launch_checks.require_no_attention_replicas(2)


def test_a_backend_whose_plugin_is_left_out_is_named_with_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_checks.require_known_cache(None)
    plugins = [SimpleNamespace(name="portable_cpu"), SimpleNamespace(name="other_cache")]
    monkeypatch.setattr(launch_checks, "entry_points", lambda group: plugins)
    monkeypatch.setenv("SGLANG_PLUGINS", "portable_cpu")
    with pytest.raises(ValueError) as caught:
        launch_checks.require_known_cache("mine")
    said = str(caught.value)
    assert "--radix-cache-backend 'mine' is not registered" in said
    assert "SGLANG_PLUGINS='portable_cpu' leaves out the installed plugins other_cache" in said
    monkeypatch.delenv("SGLANG_PLUGINS")
    with pytest.raises(ValueError, match="Installed plugins are other_cache, portable_cpu"):
        launch_checks.require_known_cache("mine")


def test_the_checks_run_on_this_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.arg_groups.overrides.resolving_view", lambda args: args)
    ran: list[Any] = []
    args = SimpleNamespace(
        device="cuda", radix_cache_backend=None, attn_dp_size=2, tp_size=2, dp_size=1, pp_size=1
    )
    launch_checks._check_first(args, ran.append)
    assert ran == [args]
    on_cpu = SimpleNamespace(**{**vars(args), "device": "cpu", "nnodes": 1})
    with pytest.raises(ValueError, match="attention data parallelism"):
        launch_checks._check_first(on_cpu, ran.append)
