# SPDX-License-Identifier: Apache-2.0
"""Stock pools against the Jenga arena: same bytes, checkpoint and ``bench_serving`` workload.

    python benchmark/serving/run.py [--shape gemma3 gpt_oss] [--rounds 3] [--out results/]

Each round starts one server after the other (stock, jenga, stock, jenga, ...), so a drift of the
machine hits both. Figures are ratios within one run; absolute times on a CPU mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from provenance import commit, gpu_facts  # noqa: E402

from agents import Agents  # noqa: E402
from agents import run as run_agents  # noqa: E402
from sglang_jenga.demo.server import free_port  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A checkpoint and a workload that memory bounds."""

    family: str
    max_total_tokens: int
    workloads: dict[str, tuple[str, ...] | Agents]
    preset: str = "bench"
    flags: tuple[str, ...] = ()
    backend: str = "sglang-oai"


def _of_length(num: int, prompt_tokens: int, output_tokens: int) -> tuple[str, ...]:
    return (
        *("--num-prompts", str(num), "--random-range-ratio", "1.0"),
        *("--random-input-len", str(prompt_tokens), "--random-output-len", str(output_tokens)),
    )


def long_prompts(num: int, *, prompt_tokens: int, output_tokens: int) -> tuple[str, ...]:
    """``bench_serving`` flags: prompts that share nothing."""
    return ("--dataset-name", "random-ids", *_of_length(num, prompt_tokens, output_tokens))


def shared_prefixes(groups: int, *, prefix_tokens: int, question_tokens: int) -> tuple[str, ...]:
    """``bench_serving`` flags: groups of prompts behind one system prompt each."""
    return (
        *("--dataset-name", "generated-shared-prefix", "--gsp-output-len", "32"),
        *("--gsp-num-groups", str(groups), "--gsp-prompts-per-group", "4"),
        *("--gsp-system-prompt-len", str(prefix_tokens)),
        *("--gsp-question-len", str(question_tokens)),
    )


def pictures(
    num: int, *, per_prompt: int, prompt_tokens: int, output_tokens: int
) -> tuple[str, ...]:
    """``bench_serving`` flags: chats about pictures, all different."""
    return (
        *("--dataset-name", "image", "--image-count", str(per_prompt)),
        *("--image-resolution", "100x100"),
        *_of_length(num, prompt_tokens, output_tokens),
    )


SHAPES = {
    "gemma3": Shape(
        family="gemma3",
        max_total_tokens=7500,
        workloads={
            "long prompts": long_prompts(16, prompt_tokens=2000, output_tokens=48),
            "shared prefixes": shared_prefixes(5, prefix_tokens=1200, question_tokens=200),
            "agents": Agents(
                agents=10,
                at_once=5,
                prompts=2,
                system_tokens=600,
                turns=5,
                turn_tokens=120,
                output_tokens=24,
            ),
        },
    ),
    "gpt_oss": Shape(
        family="gpt_oss",
        max_total_tokens=5000,
        workloads={
            "long prompts": long_prompts(16, prompt_tokens=1500, output_tokens=48),
            "shared prefixes": shared_prefixes(5, prefix_tokens=1000, question_tokens=200),
            "agents": Agents(
                agents=10,
                at_once=5,
                prompts=2,
                system_tokens=500,
                turns=5,
                turn_tokens=120,
                output_tokens=24,
            ),
        },
    ),
    # Stock sets states and K/V apart; it admits as many requests as a fifth of its states.
    "granite_hybrid": Shape(
        family="granite_hybrid",
        preset="test",
        max_total_tokens=2500,
        flags=("--max-mamba-cache-size", "20"),
        workloads={
            "long prompts": long_prompts(20, prompt_tokens=500, output_tokens=48),
            "shared prefixes": shared_prefixes(5, prefix_tokens=300, question_tokens=100),
            "agents": Agents(
                agents=12,
                at_once=6,
                prompts=2,
                system_tokens=200,
                turns=5,
                turn_tokens=60,
                output_tokens=24,
            ),
        },
    ),
    # 68 tokens to a picture; stock keeps them in all 6 layers, though 2 read them.
    "mllama": Shape(
        family="mllama",
        preset="test",
        max_total_tokens=1400,
        backend="sglang-oai-chat",
        workloads={
            "three pictures": pictures(20, per_prompt=3, prompt_tokens=40, output_tokens=48),
        },
    ),
}
MANAGERS = ("stock", "jenga")
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One workload on one server. Token counts and log figures come from the server itself."""

    shape: str
    manager: str
    workload: str
    round: int
    output_tokens_per_s: float
    duration_s: float
    mean_running: float
    peak_running: int
    retracted: int
    hit_percent: float
    completed: int
    first_token_ms: float


class Server:
    """A real server in its own process group; its log is the source of batch figures."""

    def __init__(
        self, checkpoint: Path, shape: Shape, manager: str, log: Path, device: str
    ) -> None:
        self.port = free_port()
        self.log = log
        command = [
            sys.executable, "-m", "sglang.launch_server", "--model-path", str(checkpoint),
            "--host", "127.0.0.1", "--port", str(self.port), "--device", device,
            "--dtype", DTYPES[device], "--mem-fraction-static", "0.5",
            "--max-total-tokens", str(shape.max_total_tokens), "--chunked-prefill-size", "1024",
            "--decode-log-interval", "1", "--random-seed", "0", *shape.flags,
        ]  # fmt: skip
        if manager == "jenga":
            command += ["--radix-cache-backend", "jenga"]
        # Architectures that stock serves wrongly or not at all get the same model file.
        environ = {**os.environ, "SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_jenga.models"}
        if device == "cpu":
            # Both sides compute attention with the same backend, so only memory differs. One
            # thread: with more, tiny operators wait for each other whenever the client runs.
            environ |= {"SGLANG_JENGA_REFERENCE_ATTENTION": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environ,
            start_new_session=True,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, limit_s: float = 300) -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"server died at start:\n{self.log.read_text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health_generate", timeout=5):
                    return
            except OSError:
                time.sleep(1)
        raise SystemExit(f"server not up after {limit_s} s:\n{self.log.read_text()[-3000:]}")

    def post(self, path: str) -> None:
        request = urllib.request.Request(f"{self.url}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def log_figures(text: str) -> dict[str, float]:
    """Running batch per decode step, retractions and hit rate out of a server's log."""
    running = [int(n) for n in re.findall(r"Decode batch.*?#running-req: (\d+)", text)]
    retracted = sum(int(n) for n in re.findall(r"#retracted_reqs: (\d+)", text))
    new = sum(int(n) for n in re.findall(r"Prefill batch.*?#new-token: (\d+)", text))
    cached = sum(int(n) for n in re.findall(r"Prefill batch.*?#cached-token: (\d+)", text))
    return {
        "mean_running": round(statistics.fmean(running), 2) if running else 0.0,
        "peak_running": max(running, default=0),
        "retracted": retracted,
        "hit_percent": round(100 * cached / max(1, new + cached), 1),
    }


def states_per_step(text: str) -> list[tuple[int, int]]:
    """(running requests, recurrent states that they pin) at every decode step of a server's log."""
    found = re.findall(r"Decode batch.*?#running-req: (\d+).*?mamba num: (\d+)", text)
    return [(int(running), int(states)) for running, states in found]


def bench(
    server: Server, checkpoint: Path, backend: str, flags: tuple[str, ...] | Agents, seed: int
) -> dict[str, float]:
    if isinstance(flags, Agents):
        return run_agents(server.url, flags, seed)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        subprocess.run(
            [
                sys.executable, "-m", "sglang.bench_serving", "--backend", backend,
                "--base-url", server.url, "--model", str(checkpoint), "--tokenizer",
                str(checkpoint), "--seed", str(seed), "--output-file", out.name,
                "--disable-tqdm", *flags,
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        return json.loads(Path(out.name).read_text().splitlines()[-1])


def measure(
    name: str,
    shape: Shape,
    checkpoint: Path,
    rounds: int,
    logs: Path,
    states: list[dict],
    device: str,
) -> list[Sample]:
    """``states`` receives, for models that have some, what requests pinned step by step."""
    samples = []
    for turn in range(rounds):
        for manager in MANAGERS:
            log = logs / f"{name}-{manager}-{turn}.log"
            server = Server(checkpoint, shape, manager, log, device)
            try:
                server.wait()
                for workload, flags in shape.workloads.items():
                    server.post("/flush_cache")
                    start = len(log.read_text())
                    result = bench(server, checkpoint, shape.backend, flags, seed=turn + 1)
                    logged = log.read_text()[start:]
                    figures = log_figures(logged)
                    if steps := states_per_step(logged):
                        row = {"shape": name, "manager": manager, "workload": workload}
                        states.append({**row, "round": turn, "steps": steps})
                    sample = Sample(
                        shape=name, manager=manager, workload=workload, round=turn,
                        output_tokens_per_s=round(result["output_throughput"], 2),
                        duration_s=round(result["duration"], 2), completed=result["completed"],
                        first_token_ms=round(result["median_ttft_ms"], 1),
                        **figures,
                    )  # fmt: skip
                    print(json.dumps(asdict(sample)), flush=True)
                    samples.append(sample)
            finally:
                server.stop()
    return samples


def median(samples: list[Sample], field: str) -> float:
    return statistics.median(getattr(sample, field) for sample in samples)


def table(samples: list[Sample]) -> str:
    """Medians over rounds and jenga/stock ratios with their spread over rounds."""
    lines = [
        "| shape | workload | manager | running (mean) | peak | retracted | hit % | first token ms "
        "| out tok/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ratios = [
        "",
        "| shape | workload | running batch x | first token x (min-max) "
        "| output tokens/s x (min-max) |",
        "| --- | --- | --- | --- | --- |",
    ]
    cells = sorted({(s.shape, s.workload) for s in samples})
    for shape, workload in cells:
        mine = [s for s in samples if (s.shape, s.workload) == (shape, workload)]
        by = {
            m: sorted((s for s in mine if s.manager == m), key=lambda s: s.round) for m in MANAGERS
        }
        for manager, rows in by.items():
            lines.append(
                f"| {shape} | {workload} | {manager} | {median(rows, 'mean_running'):.1f} | "
                f"{median(rows, 'peak_running'):.0f} | {median(rows, 'retracted'):.0f} | "
                f"{median(rows, 'hit_percent'):.1f} | {median(rows, 'first_token_ms'):,.0f} | "
                f"{median(rows, 'output_tokens_per_s'):.1f} |"
            )
        pairs = list(zip(by["jenga"], by["stock"], strict=True))
        running = [j.mean_running / s.mean_running for j, s in pairs]
        speed = [j.output_tokens_per_s / s.output_tokens_per_s for j, s in pairs]
        first = [j.first_token_ms / s.first_token_ms for j, s in pairs]
        ratios.append(
            f"| {shape} | {workload} | {statistics.median(running):.2f} | "
            f"{statistics.median(first):.2f} ({min(first):.2f}-{max(first):.2f}) | "
            f"{statistics.median(speed):.2f} ({min(speed):.2f}-{max(speed):.2f}) |"
        )
    return "\n".join(lines + ratios) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--workload", nargs="+", help="only these (as 'agents')")
    parser.add_argument("--device", choices=sorted(DTYPES), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    from importlib.metadata import version

    from sglang_jenga.tiny import build

    args.out.mkdir(parents=True, exist_ok=True)
    versions = {p: version(p) for p in ("sglang", "sglang-jenga", "torch")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    samples = []
    states: list[dict] = []
    with tempfile.TemporaryDirectory() as work:
        for name in args.shape:
            shape = SHAPES[name]
            if args.workload:
                chosen = {w: f for w, f in shape.workloads.items() if w in args.workload}
                shape = replace(shape, workloads=chosen)
            checkpoint = build(shape.family, Path(work) / name, preset=shape.preset)
            samples += measure(
                name, shape, checkpoint, args.rounds, Path(work), states, args.device
            )
    header = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions}
    header["machine"] = machine | (gpu_facts() if args.device == "cuda" else {})
    raw = [json.dumps(header), *(json.dumps(asdict(sample)) for sample in samples)]
    (args.out / "serving.jsonl").write_text("\n".join(raw) + "\n")
    (args.out / "serving.md").write_text(table(samples))
    if states:
        raw = [json.dumps(header), *map(json.dumps, states)]
        (args.out / "states.jsonl").write_text("\n".join(raw) + "\n")
    print(table(samples))


if __name__ == "__main__":
    main()
