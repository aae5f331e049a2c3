# SPDX-License-Identifier: Apache-2.0
"""Families x variants x scenarios: record stock answers once, play on each jenga server."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.adapter import build_adapter
from server.examples import EXAMPLES, build_example
from server.launch import ServerDied, last_error, serving
from server.reference import Reference, fingerprint
from server.run import Outcome, Setting, Tally, check, record
from server.scenarios import SCENARIOS
from server.variants import VARIANTS, Variant, jenga_spec, stock_spec


class CannotServe(RuntimeError):
    """The stock server itself cannot serve a reference: there is nothing to agree with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A tiny checkpoint with its adapter; ``work_dir`` keeps recorded answers and logs."""

    name: str
    checkpoint: Path
    adapter: Path
    work_dir: Path


@contextmanager
def _alone(work_dir: Path, name: str) -> Iterator[None]:
    """Processes of one test run build and record the same files: one at a time."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_checkpoint(name: str, work_dir: Path) -> Path:
    """Build the tiny checkpoint of a family where it does not exist yet."""
    checkpoint = work_dir / "checkpoints" / name
    if name in EXAMPLES:
        return build_example(name, build_checkpoint(EXAMPLES[name].family, work_dir), checkpoint)
    # In a process of its own: torch and transformers stay out of this one.
    subprocess.run(
        [sys.executable, "-m", "sglang_jenga.tiny", name, str(checkpoint)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return checkpoint


def prepare(name: str, work_dir: Path) -> Family:
    """Build the checkpoint and the adapter where they do not exist yet."""
    with _alone(work_dir, name):
        checkpoint = build_checkpoint(name, work_dir)
        adapter = build_adapter(checkpoint, work_dir / "adapters" / name)
    return Family(name=name, checkpoint=checkpoint, adapter=adapter, work_dir=work_dir)


def _workload() -> str:
    """Hash of what the scenarios ask: recorded answers may lack those of a changed workload."""
    here = Path(__file__).parent
    names = ("prompts.py", "scenarios.py", "image_scenarios.py", "pictures.py")
    sources = b"".join((here / name).read_bytes() for name in names)
    return hashlib.sha256(sources).hexdigest()[:16]


def reference_of(family: Family, name: str, scenarios: Iterable[str]) -> Reference:
    """:func:`_reference_of`, one process at a time."""
    with _alone(family.work_dir, f"{family.name}-{name}"):
        return _reference_of(family, name, scenarios)


def _reference_of(family: Family, name: str, scenarios: Iterable[str]) -> Reference:
    """Stock answers to everything that ``scenarios`` compare with, recorded now if need be.

    Raises:
        CannotServe: the stock server does not start on this family with these flags.
    """
    spec = stock_spec(name, family.name, family.checkpoint, family.adapter)
    reference = Reference(
        family.work_dir / "references" / f"{family.name}-{name}.json",
        fingerprint=fingerprint(family.checkpoint, spec.flags),
    )
    workload = _workload()
    missing = [s for s in scenarios if (s, workload) not in reference.recorded]
    if not missing:
        return reference
    log_path = family.work_dir / "logs" / f"{family.name}-stock-{name}.log"
    setting = Setting(lora=_lora_name(name))
    try:
        with serving(spec, log_path) as server:
            for scenario in missing:
                record(SCENARIOS[scenario], server, reference, setting)
                reference.recorded.add((scenario, workload))
    except ServerDied as error:
        why = last_error(log_path)
        if why is None:  # killed or too slow: that says nothing about what SGLang can serve
            raise
        raise CannotServe(f"stock SGLang fails ({name}): {why}; log: {log_path.name}") from error
    finally:
        reference.save()
    return reference


def _lora_name(reference: str) -> str | None:
    return next((v.setting.lora for v in VARIANTS if v.reference == reference), None)


def play(
    family: Family, variant: Variant, scenarios: Sequence[str], reference: Reference
) -> Iterator[Outcome]:
    """Outcomes of ``scenarios`` on the variant's server, which is restarted if it dies."""
    spec = jenga_spec(variant, family.name, family.checkpoint, family.adapter)
    left = list(scenarios)
    attempt = 0
    while left:
        attempt += 1
        suffix = f"-{attempt}" if attempt > 1 else ""
        log_path = family.work_dir / "logs" / f"{family.name}-{variant.name}{suffix}.log"
        try:
            with serving(spec, log_path) as server:
                while left and server.alive:
                    name = left.pop(0)
                    yield check(SCENARIOS[name], server, reference, variant.setting)
        except ServerDied as error:
            for name in left:
                yield Outcome(
                    scenario=name, passed=False, failure=str(error), seconds=0.0, tally=Tally()
                )
            return
