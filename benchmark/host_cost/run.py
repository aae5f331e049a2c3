# SPDX-License-Identifier: Apache-2.0
"""Microseconds of host work per decode step and per prefill call: jenga against stock pools.

    run.py [--batches 1,16,256,1024] [--repeats 7] [--device cpu] [--only gemma3-1]
    run.py --table          only rewrite results.md from results.jsonl

Both systems live in this process and take turns, block by block, so that a slow moment of the
machine hits both. Every block's mean goes to ``results.jsonl``; medians and quartiles to
``results.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
RAW, TABLE = HERE / "results" / "results.jsonl", HERE / "results" / "results.md"

#: (shape, page size, whether prefill is measured)
CASES = (
    ("gemma3", 1, True),
    ("gemma3", 16, False),
    ("uniform", 1, True),
    ("uniform", 16, False),
    ("state", 1, True),
)
#: One block of decode steps: SGLang gives a window's dead slots back every 128 tokens, so that in
#: one block every request slides, in both systems.
STEPS = 128
PROMPT, NEW_PROMPT = 300, 128
#: Blocks before measuring. While decoding, a request slides once its own tokens exceed the window.
WARM_UP = {"prefill": 1, "decode": 4}


#: On a CPU device everything is this thread's work, and its CPU time is immune to other processes.
#: On a GPU waiting for the device has to count: wall time.
clock = time.thread_time


def decode_block(system: Any, reqs: list[Any]) -> float:
    """Seconds of ``STEPS`` decode steps: the capacity check and the allocation, nothing else."""
    spent = 0.0
    batch = system.decode_batch(reqs)
    for _ in range(STEPS):
        start = clock()
        fits = batch.check_decode_mem()
        system.alloc_for_decode(batch, 1)
        spent += clock() - start
        assert fits, "the systems are sized so that nothing is evicted"
        # What SGLang does around it, the same for both.
        batch.seq_lens = batch.seq_lens + 1
        batch.seq_lens_cpu = batch.seq_lens_cpu + 1
        for req in reqs:
            req.decode_batch_idx += 1
            req.output_ids.append(1)
    return spent


def prefill_block(system: Any, prompts: list[list[int]]) -> float:
    """Seconds of one prefill call: SGLang's admission of every request, and the allocation."""
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.mem_cache.allocation import alloc_for_extend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    reqs = [system.request(prompt) for prompt in prompts]
    for req in reqs:
        req.init_next_round_input(system.tree)
    nobody = system.batch([], ForwardMode.DECODE)
    start = clock()
    adder = PrefillAdder(
        system.page_tokens, system.tree, system.allocator, nobody, 0.3, 2**30, 2**30
    )
    for req in reqs:
        adder.add_one_req(req, False, None)
    admitted = clock()
    assert len(adder.can_run_list) == len(reqs), "the systems are sized to admit everybody"
    batch = system.extend_batch(reqs)
    allocating = clock()
    alloc_for_extend(batch)
    spent = clock() - allocating + admitted - start
    system.drop(reqs)
    return spent


def measure(case: tuple[str, int, bool], size: int, args: argparse.Namespace) -> list[dict]:
    """Blocks of both systems in turn. One record per system and operation."""
    from systems import Jenga, Stock

    shape, page_tokens, with_prefill = case
    rng = random.Random(size)
    steps = STEPS * (args.repeats + WARM_UP["decode"])
    context = PROMPT + STEPS + steps + page_tokens
    sizes = {
        "shape": shape,
        "page_tokens": page_tokens,
        "tokens": -(-2 * size * context // page_tokens) * page_tokens,
        "rows": 2 * size,
        "context": context,
        "device": args.device,
    }
    systems = [Stock(**sizes), Jenga(**sizes)]
    # Lengths differ, so that requests slide at different steps, as on a server.
    prompts = [
        [rng.randrange(32_000) for _ in range(PROMPT + rng.randrange(STEPS))] for _ in range(size)
    ]
    operations: list[tuple[str, int, dict[str, Callable[[], float]]]] = []
    if with_prefill:
        fresh = [[rng.randrange(32_000) for _ in range(NEW_PROMPT)] for _ in range(size)]
        operations.append(
            ("prefill", 1, {s.name: lambda s=s: prefill_block(s, fresh) for s in systems})
        )
    running = {s.name: s.start(prompts) for s in systems}
    operations.append(
        (
            "decode",
            STEPS,
            {s.name: lambda s=s: decode_block(s, running[s.name]) for s in systems},
        )
    )
    gc.collect()
    gc.freeze()
    records = []
    for operation, calls, blocks in operations:
        seconds: dict[str, list[float]] = {name: [] for name in blocks}
        repeats = args.repeats if operation == "decode" else max(args.repeats, 200 // size)
        for turn in range(WARM_UP[operation] + repeats):
            order = list(blocks) if turn % 2 else list(blocks)[::-1]
            for name in order:
                gc.disable()  # a collection would hit one of the two
                spent = blocks[name]()
                gc.enable()
                if turn >= WARM_UP[operation]:
                    seconds[name].append(spent)
        for name, spent in seconds.items():
            records.append(
                {
                    "shape": shape,
                    "page_tokens": page_tokens,
                    "operation": operation,
                    "batch": size,
                    "system": name,
                    "microseconds": [round(1e6 * s / calls, 2) for s in spent],
                }
            )
    return records


def environment(device: str) -> dict[str, Any]:
    import sglang
    import torch
    from provenance import commit

    import sglang_jenga

    chip = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter([platform.processor()]),
        platform.processor(),
    )
    return {
        "cpu": chip,
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "clock": clock.__name__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sglang": sglang.__version__,
        "sglang_jenga": sglang_jenga.__version__,
        "tree_cores": {"stock": os.environ.get("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "rust")},
    }


def run(args: argparse.Namespace) -> None:
    global clock
    clock = time.thread_time if args.device == "cpu" else time.perf_counter
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "" if args.device == "cpu" else "0")
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from sglang.srt.plugins import load_plugins

    load_plugins()
    import logging

    import torch
    from sglang.srt.runtime_context import get_context, get_server_args

    from systems import STATE_CHUNK_TOKENS

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    RAW.parent.mkdir(exist_ok=True)
    batches = [int(size) for size in args.batches.split(",")]
    published = {
        "radix_cache_backend": "jenga",
        "device": args.device,
        "mamba_radix_cache_strategy": "extra_buffer_lazy",
    }
    with (
        get_context().override_server_args(**published),
        RAW.open("w", encoding="utf-8") as out,
    ):
        get_server_args()._mamba_cache_chunk_size = STATE_CHUNK_TOKENS
        out.write(json.dumps({"environment": environment(args.device)}) + "\n")
        for case in CASES:
            if args.only and args.only != f"{case[0]}-{case[1]}":
                continue
            for size in batches:
                for record in measure(case, size, args):
                    out.write(json.dumps(record) + "\n")
                    out.flush()
                    print(_line(record), flush=True)


def _line(record: dict[str, Any]) -> str:
    values = record["microseconds"]
    return (
        f"{record['shape']:8} page {record['page_tokens']:2} {record['operation']:8} "
        f"batch {record['batch']:5} {record['system']:6} "
        f"{statistics.median(values):10.1f} us ({min(values):.1f} to {max(values):.1f})"
    )


def write_table() -> None:
    """``results.md`` from ``results.jsonl``."""
    lines = RAW.read_text(encoding="utf-8").splitlines()
    facts = json.loads(lines[0])["environment"]
    cells: dict[tuple[str, int, str, int], dict[str, list[float]]] = {}
    for line in lines[1:]:
        r = json.loads(line)
        key = (r["shape"], r["page_tokens"], r["operation"], r["batch"])
        cells.setdefault(key, {})[r["system"]] = r["microseconds"]
    text = [
        "Made by `run.py` from `results.jsonl`. Microseconds per call: median (quartiles); the",
        "ratio is jenga / stock, median of the pairs of neighbouring blocks.",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, load at start {facts['load'][0]}, "
        f"device {facts['device']}, torch {facts['torch']}, SGLang {facts['sglang']}.",
        "",
        "| shape | page | operation | batch | stock | jenga | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (shape, page, operation, size), by_system in cells.items():
        stock, jenga = by_system["stock"], by_system["jenga"]
        ratio = statistics.median(j / s for s, j in zip(stock, jenga, strict=True))
        text.append(
            f"| {shape} | {page} | {operation} | {size} | {_cell(stock)} | {_cell(jenga)} "
            f"| {ratio:.2f} |"
        )
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"wrote {TABLE}")


def _cell(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,16,256,1024")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", help="one case, such as gemma3-1 (shape and page size)")
    parser.add_argument("--table", action="store_true", help="only rewrite results.md")
    args = parser.parse_args()
    if not args.table:
        run(args)
    write_table()


if __name__ == "__main__":
    main()
