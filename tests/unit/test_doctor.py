# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga doctor`` says before a start what would fail at the start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.cli import doctor
from sglang_jenga.cli.__main__ import main
from sglang_jenga.sglang_ext import diagnose
from sglang_jenga.sglang_ext.hook_table import HOOKS
from sglang_jenga.sglang_ext.refusal_table import REFUSALS


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A start tells its processes by the environment which models this package brings."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def findings(
    capsys: pytest.CaptureFixture[str], *server_args: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    status = main(["doctor", "--format", "json", "--", *server_args])
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == doctor.SCHEMA and report["ok"] is (status == 0)
    return status, {found["check"]: found for found in report["findings"]}


@pytest.mark.slow
def test_this_environment_can_serve_and_the_resolved_command_line_is_accepted(
    tiny_gemma3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = findings(capsys, "--model-path", str(tiny_gemma3), "--device", "cpu")
    assert status == 0 and all(check["ok"] for check in found.values())
    for process in ("launcher process", "scheduler process"):
        assert f"{len(HOOKS)} of {len(HOOKS)} hooks" in found[process]["says"][0]
    assert str(tiny_gemma3) in found["command line"]["says"][0]
    assert "Gemma3ForCausalLM: full (slot 512 B), window (slot" in found["arena"]["says"][0]


@pytest.mark.slow
def test_a_plugin_that_is_left_out_fails_in_every_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "portable_cpu")
    status, found = findings(capsys)
    assert status == 1 and "command line" not in found
    for process in ("launcher process", "scheduler process"):
        assert not found[process]["ok"]
        assert "SGLANG_PLUGINS='portable_cpu' leaves it out" in found[process]["says"][0]


def test_refused_flags_are_named_without_a_model() -> None:
    diagnose.attached()
    by_flag = {row.flag: row for row in REFUSALS}
    row = by_flag["--enable-unified-memory"]
    (said,) = diagnose.command_line([row.flag]).problems
    assert said.startswith(row.flag) and row.reason in said and row.alternative in said
    assert not diagnose.command_line(["--page-size", "16"]).problems


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bogus-flag", "3"], "unrecognized arguments: --bogus-flag 3"),
        (["--page-size", "many"], "argument --page-size: invalid int value: 'many'"),
        (["--page-size"], "argument --page-size: expected one argument"),
        (["--bogus-\x1b[2J"], "unrecognized arguments: --bogus-\\x1b[2J"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_argparse_says_is_said(words: list[str], says: str, tiny_gemma3: Path) -> None:
    for model in ([], ["--model-path", str(tiny_gemma3)]):
        (said,) = diagnose.command_line([*words, *model] if len(words) > 1 else words).problems
        assert said == f"SGLang does not understand it: {says}"


def test_the_message_of_a_bogus_flag_reaches_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys, "--bogus-flag", "3")
    assert status == 1
    (said,) = found["command line"]["says"]
    assert "unrecognized arguments: --bogus-flag 3" in said


def test_what_sglang_itself_refuses_is_a_finding_too(tiny_gemma3: Path, tmp_path: Path) -> None:
    diagnose.attached()
    (said,) = diagnose.command_line(["--model-path", str(tmp_path / "nothing")]).problems[:1]
    assert said.startswith("SGLang refuses it:")
    after_resolution = ["--model-path", str(tiny_gemma3), "--tokenizer-worker-num", "0"]
    (said,) = diagnose.command_line(after_resolution).problems
    assert said == "SGLang refuses it: AssertionError: Tokenizer worker num must >= 1"


def test_another_backend_is_not_checked_as_if_it_were_ours() -> None:
    (said,) = diagnose.command_line(["--radix-cache-backend=flexkv"]).problems
    assert "'flexkv': this server would not run on Jenga's arena" in said


def test_settings_with_a_typo_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_JENGA_ARENA_SISE", "1GiB")
    (said,) = diagnose.settings()
    assert "did you mean SGLANG_JENGA_ARENA_SIZE" in said


def test_a_missing_engine_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = doctor.version

    def version(name: str) -> str:
        if name == "sglang":
            raise doctor.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "_inside", lambda *_, **__: pytest.fail("SGLang was loaded"))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert (
        "FAIL" in said and "sglang is not installed here" in said and "not fine: versions" in said
    )


def test_an_engine_that_cannot_be_loaded_shows_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sglang.py").write_text("raise OSError('libcuda is not what it was')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, found = findings(capsys)
    assert status == 1 and "libcuda is not what it was" in " ".join(
        text for check in found.values() for text in check["says"]
    )


def test_a_load_that_takes_too_long_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--timeout", "0.2"]) == 1
    assert "was not loaded after 0 s" in capsys.readouterr().out
