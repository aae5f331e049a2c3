# SPDX-License-Identifier: Apache-2.0
"""What the GPU set stands on, checked where there is no GPU: batches, page tables, the reference.

SGLang's triton kernels run here too, in triton's interpreter: slow and in float32, but the same
source.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import paged_bench
import state_calls
import vendor_calls
from batches import BATCHES, HEADS, make_case
from paged_calls import Call
from paged_cases import (
    FULL,
    KIND_NAMES,
    WINDOW,
    Problem,
    Workload,
    arena_bytes_needed,
    first_live,
    paged_indices,
    reference,
)
from pool_writes import assert_only_written_rows_changed
from sglang_jenga.core import kernels

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "benchmark" / "kernels"


def workload(heads: str = "full 1x128, window 2x64", batch: str = "prefill", page: int = 1):
    return Workload(make_case(heads, batch, page), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("batch", sorted(BATCHES))
@pytest.mark.parametrize("heads", sorted(HEADS))
def test_no_two_requests_and_no_two_kinds_share_a_byte(heads: str, batch: str, page: int) -> None:
    work = workload(heads, batch, page)
    owner = np.zeros(work.plan.arena_bytes, dtype=np.int64)
    for kind in (FULL, WINDOW):
        size = work.plan.kinds[kind].slot_bytes
        for slots in work.slots[kind]:
            for slot in slots.tolist():
                owner[slot * size : (slot + 1) * size] += 1
    assert owner.max() == 1
    assert owner[: work.plan.large_page_bytes].max() == 0, "the sink belongs to nobody"


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_each_kind_keeps_what_the_new_tokens_see(batch: str, page: int) -> None:
    work = workload(batch=batch, page=page)
    for kind in (FULL, WINDOW):
        shape = work.case.shape(kind)
        for request, slots in zip(work.case.requests, work.slots[kind], strict=True):
            assert len(slots) == request.num_tokens - first_live(request, shape, page)
            if shape.window_tokens is not None:
                assert len(slots) >= min(
                    request.num_tokens, shape.window_tokens + request.new_tokens
                )


def test_what_the_batch_does_not_own_is_nan() -> None:
    """So that a kernel which reads it answers NaN instead of something plausible."""
    work = workload()
    for kind in (FULL, WINDOW):
        k, v = work.pool.get_kv_buffer(work.layer(kind))
        used = np.concatenate(work.slots[kind])
        assert k[used].isfinite().all() and v[used].isfinite().all()
        free = work.plan.num_large_pages * work.plan.kinds[kind].slots_per_large_page - 1
        assert free not in used
        assert k[free].isnan().all() and v[free].isnan().all()
    stolen = replace(work.problem(FULL), slots=tuple(s + 1 for s in work.slots[FULL]))
    assert reference(stolen).isnan().any()


def test_slots_can_be_placed_above_a_given_offset() -> None:
    case = replace(make_case("equal heads", "decode", 1), below_bytes=2**20)
    work = Workload(case, device="cpu", dtype=torch.float32)
    for kind in (FULL, WINDOW):
        first = min(int(slots.min()) for slots in work.slots[kind])
        assert first * work.plan.kinds[kind].slot_bytes >= case.below_bytes


@pytest.mark.parametrize("page", [1, 16])
def test_page_tables_name_every_slot_in_order(page: int) -> None:
    work = workload(page=page)
    num_new = [request.new_tokens for request in work.case.requests]
    for kind in (FULL, WINDOW):
        table = paged_indices(work.slots[kind], num_new, page)
        assert table.kv_indices.dtype == table.kv_indptr.dtype == torch.int32
        assert table.qo_indptr.tolist() == [0, *np.cumsum(num_new).tolist()]
        for i, slots in enumerate(work.slots[kind]):
            pages = table.kv_indices[table.kv_indptr[i] : table.kv_indptr[i + 1]].numpy()
            full_pages = (pages[:, None] * page + np.arange(page)).reshape(-1)
            last = int(table.last_page_len[i])
            assert 1 <= last <= page
            assert np.array_equal(full_pages[: (len(pages) - 1) * page + last], slots)


def test_slots_that_are_not_whole_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="whole pages of 16"):
        paged_indices([np.arange(3, 20)], [1], 16)


@pytest.mark.parametrize("kind", [FULL, WINDOW], ids=KIND_NAMES)
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_the_reference_agrees_with_torch(batch: str, kind: int) -> None:
    """Torch's own attention with an explicit mask, in float64, for every request."""
    problem = workload(batch=batch).problem(kind)
    groups = problem.q.shape[1] // problem.k.shape[1]
    found = reference(problem)
    start = 0
    for slots, new in zip(problem.slots, problem.num_new, strict=True):
        query = torch.arange(len(slots) - new, len(slots))[:, None]
        distance = query - torch.arange(len(slots))[None, :]
        mask = distance >= 0
        if problem.window_tokens is not None:
            mask &= distance <= problem.window_tokens
        k, v = (
            cache[slots].double().repeat_interleave(groups, dim=1).transpose(0, 1)
            for cache in (problem.k, problem.v)
        )
        q = problem.q[start : start + new].double().transpose(0, 1)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=problem.scale
        )
        torch.testing.assert_close(found[start : start + new], expected.transpose(0, 1))
        start += new


def test_a_sink_takes_its_share_and_a_cap_flattens() -> None:
    problem = workload(batch="decode").problem(FULL)
    plain = reference(problem)
    heads = problem.q.shape[1]
    drowned = reference(replace(problem, sinks=torch.full((heads,), 100.0)))
    assert drowned.abs().max() < 1e-6 * plain.abs().max()
    absent = reference(replace(problem, sinks=torch.full((heads,), -100.0)))
    torch.testing.assert_close(absent, plain)
    assert not torch.allclose(reference(replace(problem, logit_cap=0.5)), plain, atol=1e-3)


@pytest.mark.parametrize("page", [1, 16])
def test_pool_writes_change_exactly_their_rows(page: int) -> None:
    assert_only_written_rows_changed(device="cpu", dtype=torch.float32, page_tokens=page)


INTERPRETED = """
import json, sys, torch
from batches import make_case
from paged_calls import calls_for
from paged_cases import FULL, WINDOW, Workload, reference

found = []
for heads, batch, page, cap, sinks in json.loads(sys.argv[1]):
    case = make_case(heads, batch, page, logit_cap=cap, has_sinks=sinks)
    work = Workload(case, device="cpu", dtype=torch.float32)
    for kind in (FULL, WINDOW):
        problem = work.problem(kind)
        contiguous = problem.on_contiguous_pools()
        for name, prepare in calls_for(problem).items():
            if name.startswith("triton"):
                ours, pools = prepare(problem)(), prepare(contiguous)()
                error = float((ours - reference(problem)).abs().max())
                found.append([case.name, kind, page, name, error, torch.equal(ours, pools)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_sglang_triton_kernels_read_arena_views_in_the_interpreter() -> None:
    """Equal to float64 within float32, equal to contiguous pools to the bit, NaN around them."""
    requests = [
        ("full 2x256, window 8x64", "decode", 16, 4.0, False),
        ("full 1x128, window 2x64", "prefill", 1, 0.0, True),
    ]
    path = [str(HERE), str(KERNELS), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED, json.dumps(requests)],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",  # read when triton is imported, so not in this process
            "PYTHONPATH": os.pathsep.join(path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(requests)
    for case, kind, page, name, error, equal in found:
        where = f"{name}, {case}, {KIND_NAMES[kind]} kind, page {page}"
        assert error < 1e-5, f"{where}: error {error}"
        assert equal, f"{where}: arena views and contiguous pools differ"


def parameters(module: str, class_name: str, method: str) -> list[str]:
    """Parameter names of an installed method, from its source: the import takes half a minute."""
    spec = find_spec("flashinfer")
    assert spec is not None and spec.origin is not None, "flashinfer comes with sglang"
    tree = ast.parse((Path(spec.origin).parent / module).read_text(encoding="utf-8"))
    (owner,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    (found,) = (n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == method)
    return [a.arg for a in (*found.args.args, *found.args.kwonlyargs)][1:]


def test_flashinfer_has_the_arguments_that_we_pass() -> None:
    """Its wrappers cannot be built without CUDA; their signatures can be read."""
    shared = {"sm_scale", "window_left", "logits_soft_cap", "q_data_type", "kv_data_type"}
    prefill = parameters("prefill.py", "BatchPrefillWithPagedKVCacheWrapper", "plan")
    assert prefill[:8] == [
        "qo_indptr",
        "paged_kv_indptr",
        "paged_kv_indices",
        "paged_kv_last_page_len",
        "num_qo_heads",
        "num_kv_heads",
        "head_dim_qk",
        "page_size",
    ]
    assert {*shared, "causal"} <= set(prefill)
    decode = parameters("decode.py", "BatchDecodeWithPagedKVCacheWrapper", "_plan_impl")
    assert decode[:7] == [
        "indptr",
        "indices",
        "last_page_len",
        "num_qo_heads",
        "num_kv_heads",
        "head_dim",
        "page_size",
    ]
    assert shared <= set(decode)


def arguments(package: str, module: str, function: str) -> set[str]:
    """Parameter names of an installed function, from its source."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / module).read_text(encoding="utf-8"))
    (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}


@pytest.mark.parametrize(
    ("prepare", "package", "module", "function"),
    [
        (
            partial(vendor_calls.flash_attention, version=3),
            "sglang",
            "kernels/ops/attention/flash_attention.py",
            "flash_attn_with_kvcache",
        ),
        (
            vendor_calls.trtllm_decode,
            "flashinfer",
            "decode.py",
            "trtllm_batch_decode_with_kv_cache",
        ),
        (
            vendor_calls.trtllm_prefill,
            "flashinfer",
            "prefill.py",
            "trtllm_batch_context_with_kv_cache",
        ),
    ],
    ids=["flash attention", "trtllm decode", "trtllm prefill"],
)
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_kernels_of_one_gpu_get_the_arguments_that_they_have(
    batch: str,
    prepare: Callable[[Problem], Call],
    package: str,
    module: str,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their packages load only with CUDA: a stand-in takes what they would be given."""
    stand_in = ModuleType("stand_in")
    setattr(stand_in, function, lambda **given: given)
    path = f"{package}.{module.removesuffix('.py').replace('/', '.')}"
    monkeypatch.setitem(sys.modules, path, stand_in)
    problem = workload(batch=batch, page=16).problem(WINDOW)
    given = prepare(problem)()
    assert isinstance(given, dict) and set(given) <= arguments(package, module, function)
    views = given["kv_cache"] if "kv_cache" in given else (given["k_cache"], given["v_cache"])
    assert [view.data_ptr() for view in views] == [problem.k.data_ptr(), problem.v.data_ptr()]
    table = given["block_tables"] if "block_tables" in given else given["page_table"]
    for row, slots in zip(table.tolist(), problem.slots, strict=True):
        pages = (slots[::16] // 16).tolist()
        assert row == pages + [0] * (len(row) - len(pages)), "short rows end in the sink"


def test_a_gpu_is_asked_for_the_kernels_that_it_has_and_that_are_served() -> None:
    narrow, wide = (
        workload(heads, "decode", 16).problem(FULL)
        for heads in ("equal heads", "full 2x256, window 8x64")
    )
    named = {gpu: set(vendor_calls.vendor_calls(narrow, gpu)) for gpu in kernels.EVERY_GPU}
    assert named == {
        "sm80": {"fa3 decode"},
        "sm90": {"fa3 decode", "fa4 decode", "trtllm_mha decode"},
        "sm100": {"fa4 decode", "trtllm_mha decode"},
        "sm120": {"fa4 decode", "trtllm_mha decode"},
    }
    assert not [name for name in vendor_calls.vendor_calls(wide, "sm100") if "fa4" in name]


def small_states(monkeypatch: pytest.MonkeyPatch) -> state_calls.States:
    for name, size in {"HEADS": 2, "HEAD_DIM": 4, "STATE": 8, "CHANNELS": 16}.items():
        monkeypatch.setattr(state_calls, name, size)
    return state_calls.States(device="cpu", below_bytes=4096)


def test_a_check_of_states_sees_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    states = small_states(monkeypatch)
    assert states.first_byte >= 4096

    def right(view: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        view[slots.long()] += 1
        return view[slots.long()].clone()

    def neighbours_too(view: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        out = right(view, slots)
        if view is states.temporal:
            view[slots.long() + 1] += 1
        return out

    def dense_strides(view: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        where = slots if view is not states.temporal else slots - slots[0]
        return right(view, where)

    for call, equal, untouched in (
        (right, True, True),
        (neighbours_too, True, False),
        (dense_strides, False, False),
    ):
        found = states.check("k", states.temporal, call)
        assert (found.equal, found.untouched) == (equal, untouched), call.__name__
    found = states.check("k", states.temporal, lambda view, slots: torch.zeros(1))
    assert not found.equal, "a kernel that writes nothing has not been checked"


def test_the_benchmark_says_why_it_does_not_run() -> None:
    done = subprocess.run(
        [sys.executable, str(KERNELS / "run.py")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not run, torch sees no CUDA device" in done.stdout


def test_the_benchmark_shrinks_its_batch_to_the_memory() -> None:
    case = paged_bench.cases(["gemma3-27b"], [1])[0]
    whole = 2 * arena_bytes_needed(case, paged_bench.DTYPE)
    assert paged_bench.fitting(case, whole) == case
    smaller = paged_bench.fitting(case, whole // 3)
    assert smaller is not None and len(smaller.requests) == len(case.requests) // 4
    assert paged_bench.fitting(case, 1) is None


def test_the_benchmark_measures_both_pools_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path but the kernels and the clock."""

    def right(problem: Problem) -> Call:
        return lambda: reference(problem).to(problem.q.dtype)

    monkeypatch.setattr(paged_bench, "calls_for", lambda problem, gpu: {"float64": right})
    times = iter((12.0, 10.0, 3.0, 4.0))
    case = make_case("full 1x128, window 2x64", "decode", 1)
    rows = list(paged_bench.measure(case, "cpu", lambda call: next(times)))
    assert [row.kind for row in rows] == ["full", "window"]
    assert [row.ratio for row in rows] == [1.2, 0.75]
    assert all(row.equal_bits and row.error_arena < 0.05 for row in rows)
    assert paged_bench.lines(rows)[-1].endswith("| yes | 3.0 | 4.0 | 0.750 |")
