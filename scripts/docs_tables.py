# SPDX-License-Identifier: Apache-2.0
"""``python scripts/docs_tables.py``: rewrite the tables of README, docs and patches made from code.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. The tests compare; this writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
sys.path.insert(0, str(ROOT / "benchmark"))
sys.path.insert(0, str(ROOT / "scripts"))

from capacity import run as capacity_run  # noqa: E402

from patch_series import series as patch_series  # noqa: E402
from sglang_jenga.cli import doctor as doctor_command  # noqa: E402
from sglang_jenga.cli import explain as explain_command  # noqa: E402
from sglang_jenga.cli import plan as plan_command  # noqa: E402
from sglang_jenga.cli import plan_text  # noqa: E402
from sglang_jenga.cli import simulate as simulate_command  # noqa: E402
from sglang_jenga.cli.spans import ASCII  # noqa: E402
from sglang_jenga.core.catalog import CATALOG, model_kinds  # noqa: E402
from sglang_jenga.core.geometry import plan_arena  # noqa: E402
from sglang_jenga.core.kernels import ATTENTION_BACKENDS  # noqa: E402
from sglang_jenga.core.request_digest import request_digest  # noqa: E402
from sglang_jenga.core.sizes import format_bytes  # noqa: E402
from sglang_jenga.sglang_ext.diagnose import ON_CPU, how_attached  # noqa: E402
from sglang_jenga.sglang_ext.hook_table import HOOKS  # noqa: E402
from sglang_jenga.sglang_ext.hooks import SUPPORTED_SGLANG  # noqa: E402
from sglang_jenga.sglang_ext.kernel_checks import VERDICT_WORDS  # noqa: E402
from sglang_jenga.sglang_ext.kernel_table import KERNELS  # noqa: E402
from sglang_jenga.sglang_ext.metric_table import METRICS, PREFIX  # noqa: E402
from sglang_jenga.sglang_ext.refusal_table import REFUSALS  # noqa: E402
from sglang_jenga.sglang_ext.refusals import problem  # noqa: E402

_BLOCK = re.compile(r"(<!-- table ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ARENA_BYTES = 40 * 2**30


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, one line per row."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def hooks() -> str:
    """Everything Jenga attaches to in SGLang, from the table that is checked at start."""
    return table(
        ("symbol (below `sglang.srt`)", "how", "needed to", "upstream seam that would replace it"),
        [
            (f"`{h.target.removeprefix('sglang.srt.')}`", h.kind, h.reason, h.upstream)
            for h in HOOKS
        ],
    )


def refusals() -> str:
    """Flags and variables that are refused at start, from the table that is checked."""
    return table(
        ("flag or variable", "refused", "because", "instead"),
        [
            (f"`{r.flag}`", r.values, r.reason, r.alternative)
            for r in sorted(REFUSALS, key=lambda row: (row.is_environment, row.flag))
        ],
    )


def backends() -> str:
    """One row per backend, operation and GPU: how it is known that it reads an arena right."""
    order = (*ATTENTION_BACKENDS, "torch_native", "pools", "states")
    rows = []
    for row in sorted(KERNELS, key=lambda row: order.index(row.backend)):
        for where in row.architectures:
            places = ", ".join(f"`{place}`" for place in row.evidence)
            known = VERDICT_WORDS[row.verdict] + (f": {places}" if places else "")
            said = row.finding + (f"; while {row.limit}" if row.limit else "")
            rows.append((f"`{row.backend}`", row.operation, where, known, said))
    return table(("backend", "operation", "GPU", "known by", "finding"), rows)


def geometry() -> str:
    """How a 40 GiB arena of 2-byte KV is cut for each catalogue model, page size 1."""
    rows = []
    for name in CATALOG:
        plan = plan_arena(model_kinds(name), arena_bytes=_ARENA_BYTES)
        slots = ", ".join(
            f"{kind.spec.name} {kind.slot_bytes:,} B x {kind.slots_per_large_page:,}"
            for kind in plan.kinds
        )
        size = format_bytes(plan.large_page_bytes)
        rows.append((name, slots, size, plan.geometry, f"{plan.padding_percent:.4f} %"))
    return table(("model", "slot x slots per large page", "large page", "cut", "padding"), rows)


def metrics() -> str:
    """Jenga's Prometheus metrics, from the table that they are published by."""
    return table(
        (f"metric (after `{PREFIX}`)", "type", "labels", "meaning"),
        [
            (f"`{m.name.removeprefix(PREFIX)}`", m.type, ", ".join(m.labels), m.meaning)
            for m in METRICS
        ],
    )


def top() -> str:
    """A frame of ``sglang-jenga top --once --ascii``, over the recording of the documentation."""
    import screenshots

    lines = screenshots.top_frame(colour=False, glyphs=ASCII, rows=None)
    return "\n".join(["```text", *lines, "```\n"])


def scaleout() -> str:
    """What the recorded runs of ``benchmark/scale_out`` found."""
    rows = []
    for path in sorted((ROOT / "benchmark" / "scale_out" / "results").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        killed = run["killed"]
        lost = f"{len(killed['lost'])} of {killed['running']}" if killed else ""
        rows.append(
            (
                f"`{run['command'].removeprefix('python -m sglang_jenga.demo.')}`",
                " + ".join(str(server["requests"]) for server in run["servers"]),
                f"{100 * run['hit_rate']:.1f} %",
                f"{run['balance']:.2f}",
                f"{run['answered']} of {_load_requests(run['load'])}",
                lost,
            )
        )
    titles = ("run", "requests by scheduler", "hit rate", "balance", "answered", "lost of running")
    return table(titles, rows)


def _load_requests(load: dict[str, int]) -> int:
    return load["groups"] * load["chats"] * load["turns"]


def beliefs() -> str:
    """What routers would have believed in the recorded runs of ``scale_out/beliefs.py``."""
    path = ROOT / "benchmark" / "scale_out" / "results" / "beliefs.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)

        def share(name: str, run: dict[str, int] = run) -> str:
            return f"{100 * run[name] / run['prompt_tokens']:.1f} %"

        def right(name: str, run: dict[str, int] = run) -> str:
            return f"{100 * run[name] / run['requests']:.1f} %"

        rows.append(
            (
                str(run["model"]),
                share("hit_tokens"),
                share("believed_tokens"),
                share("full_only_tokens"),
                right("believed_rightly"),
                right("full_only_rightly"),
            )
        )
    titles = (
        "model",
        "hit",
        "believed",
        "believed, SGLang's rule",
        "right",
        "right, SGLang's rule",
    )
    return table(titles, rows)


def judged() -> str:
    """Steps and hits beside the peers', on the stream of chats that ``benchmark/capacity`` ran."""
    rows = []
    for (stream, model, extra), managers in capacity_run.load().items():
        if (stream, extra) != ("mooncake_chat", ""):
            continue
        found = {name: run["result"] for name, run in managers.items() if "result" in run}
        sglang = [found[name] for name in capacity_run.SGLANG if name in found]
        steps, hits = found["jenga"]["steps"], "prefix_hit_ratio"
        rows.append(
            (
                model,
                f"{steps / found['vllm']['steps']:.2f}",
                f"{steps / min(run['steps'] for run in sglang):.2f}",
                f"{100 * found['jenga'][hits]:.1f} %",
                f"{100 * found['vllm'][hits]:.1f} %",
                f"{100 * max(run[hits] for run in sglang):.1f} %",
            )
        )
    titles = (
        "model",
        "steps / vLLM's",
        "steps / SGLang's",
        "hits",
        "hits of vLLM",
        "hits of SGLang",
    )
    return table(titles, rows)


def shown(command: str, output: str) -> str:
    """A command and what it prints, as a block."""
    lines = [f"$ {command}", *output.splitlines()]
    return "\n".join(["", *(f"    {line}".rstrip() for line in lines), "", ""])


def doctor() -> str:
    """Findings of a machine without a GPU, where one flag is refused."""
    (row,) = [row for row in REFUSALS if row.flag == "--enable-hierarchical-cache"]
    hooked = f"plugin loaded, {len(HOOKS)} of {len(HOOKS)} hooks as expected"
    says = {
        "versions": f"python 3.11.7, sglang-jenga 0.1.0, sglang {SUPPORTED_SGLANG[-1]}, ...",
        "plugin": "sglang_jenga.sglang_ext.plugin:load",
        "settings": "SGLANG_JENGA_* variables parse",
        "launcher process": hooked,
        "scheduler process": hooked,
        "attachments": ", ".join(f"{number} {how}" for how, number in how_attached().items()),
        "platform": "PortableCpuPlatform, no GPU: a test bed, not speed",
        "attention backends": f"{ON_CPU} (the others need a GPU: ...)",
        "command line": problem(row, True),
    }
    findings = [{"check": k, "ok": k != "command line", "says": [v]} for k, v in says.items()]
    return shown(
        f"sglang-jenga doctor -- --model-path google/gemma-3-27b-it {row.flag}",
        doctor_command.describe(findings),
    )


def explain() -> str:
    """The report of a request whose window was taken."""
    report = {
        "rid": request_digest("mixed-17"),
        "prompt_tokens": 1200,
        "hit_tokens": 0,
        "full_only_tokens": 600,
        "tokens_by_kind": {"window": 0},
        "cut_by": "window",
        "missing_token": 576,
        "evicted_by": {
            "cause": f"request {request_digest('mixed-7')} started",
            "starving_kind": "full",
        },
        "rest_evicted_by": None,
    }
    return shown(
        "sglang-jenga explain localhost:30000 --rid mixed-17", explain_command.describe(report)
    )


PLAN_EXAMPLE = ("gpt-oss-20b", "--kv", "8GiB", "--prompt-tokens", "8000", "--output-tokens", "500")
#: Name -> (text tokens, image tokens) of vLLM's RFC #11382.
RFC = {
    "llama32-11b-vision": (43, 6193),
    "gemma2-9b": (8192, 0),
    "ministral-8b": (131072, 0),
}


def _report(*words: str) -> plan_command.Report:
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    return plan_command.make_report(parser.parse_args(words))


def plan() -> str:
    """The output of ``sglang-jenga plan``, as a block."""
    report = _report(*PLAN_EXAMPLE)
    return shown(f"sglang-jenga plan {' '.join(PLAN_EXAMPLE)}", plan_text.describe(report))


def rfc() -> str:
    """Waste of one pool for all layers, beside that of the arena, at the lengths of the RFC."""
    rows = []
    for name, (text, images) in RFC.items():
        words = ["--kv", "40GiB", "--prompt-tokens", str(text - 1), "--output-tokens", "1"]
        words += ["--image-tokens", str(images)] if images else []
        found = {row.manager: row for row in _report(name, *words).capacities}
        lengths = f"{text:,} text" + (f", {images:,} image" if images else "")
        rows.append(
            (name, lengths, *(f"{100 * found[m].waste:.2f} %" for m in ("all-full", "jenga")))
        )
    return table(("model", "tokens", "`all-full`", "`jenga`"), rows)


def series() -> str:
    """The patches for SGLang: what they are for, and their size without tests."""
    rows = []
    patches = patch_series.load()
    for patch in patches.patches:
        text = patches.path(patch).read_text(encoding="utf-8")
        code = text.partition("\ndiff --git a/test/")[0].partition("\ndiff --git ")[2]
        lines = re.findall(r"^([+-])(?![+-]{2} )", code, re.MULTILINE)
        size = f"+{lines.count('+')} -{lines.count('-')}"
        link = f"[{patch.number}](../patches/{patches.release}/{patch.file})"
        text_link = f"[text](../patches/{patches.release}/pull-requests/{patch.number}.md)"
        overlaps = ", ".join(patch.overlaps) or "-"
        rows.append(
            (link, patch.kind, patch.problem, size, str(len(patch.removes)), overlaps, text_link)
        )
    titles = ("patch", "kind", "what is wrong or missing", "lines", "replaces", "see also", "")
    return table(titles, rows)


def leftout() -> str:
    """Patches that were considered and are not sent."""
    return table(
        ("not sent", "because"), [(out.title, out.reason) for out in patch_series.load().left_out]
    )


SIMULATE_EXAMPLE = ("--model", "gemma3-27b", "--trace", "azure_llm_2023_code.csv", "--kv", "6GiB")


def simulate() -> str:
    """The output of ``sglang-jenga simulate`` on the traces of the tests, without its seconds."""
    name = SIMULATE_EXAMPLE[SIMULATE_EXAMPLE.index("--trace") + 1]
    parser = argparse.ArgumentParser()
    simulate_command.add_arguments(parser)
    args = parser.parse_args(SIMULATE_EXAMPLE)
    args.trace = ROOT / "tests" / "data" / "traces" / name
    lines = [line for line in simulate_command.run(args).splitlines() if "events/s" not in line]
    return shown(f"sglang-jenga simulate {' '.join(SIMULATE_EXAMPLE)}", "\n".join(lines))


TABLES: dict[str, Callable[[], str]] = {
    "hooks": hooks,
    "refusals": refusals,
    "backends": backends,
    "geometry": geometry,
    "metrics": metrics,
    "top": top,
    "judged": judged,
    "scaleout": scaleout,
    "beliefs": beliefs,
    "plan": plan,
    "rfc": rfc,
    "doctor": doctor,
    "explain": explain,
    "simulate": simulate,
    "series": series,
    "leftout": leftout,
}


PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "patches").glob("*.md")),
)


def rewritten(text: str) -> str:
    """``text`` with every marked table made anew. KeyError on an unknown table name."""
    return _BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = rewritten(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote the tables of {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
