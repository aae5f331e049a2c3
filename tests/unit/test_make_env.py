# SPDX-License-Identifier: Apache-2.0
"""Set-up: made once, and every step that fails says what failed and what to do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Stands for python3: makes a "venv", records what it is asked, fails where FAIL_AT says.
FAKE = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"$FAIL_AT"*) exit 7 ;; esac
case "$1" in
  scripts/make_env.py) exec {python} "$@" ;;
  -m) [ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the Makefile, what it depends on, and a fake interpreter."""
    for name in ("Makefile", "pyproject.toml", "sglang_portable_cpu/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    # The interpreter that make_env.py finds is the one it runs on: the fake one.
    script = (ROOT / "scripts/make_env.py").read_text(encoding="utf-8")
    fake = tmp_path / "fake-python"
    (tmp_path / "scripts/make_env.py").write_text(
        script.replace("return sys.executable", f"return {str(fake)!r}"), encoding="utf-8"
    )
    fake.write_text(FAKE.format(python=shutil.which("python3")), encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def make(checkout: Path, *words: str, fail_at: str = "nothing") -> subprocess.CompletedProcess[str]:
    # Variables of a make that runs these tests must not reach the one under test.
    environ = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "VENV", "MAKELEVEL")}
    environ |= {"CALLS": str(checkout / "calls"), "FAIL_AT": fail_at}
    return subprocess.run(
        ["make", f"PYTHON={checkout / 'fake-python'}", *words],
        cwd=checkout,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(checkout: Path) -> str:
    return (checkout / "calls").read_text(encoding="utf-8")


def test_the_second_run_installs_nothing(checkout: Path) -> None:
    first = make(checkout, "env")
    assert first.returncode == 0, first.stdout + first.stderr
    assert calls(checkout).count("-m pip install") == 1
    assert "-e .[serve,test,check] -e ./sglang_portable_cpu" in calls(checkout)
    before = calls(checkout)
    assert make(checkout, "env").returncode == 0
    assert calls(checkout) == before


def test_a_checkout_that_comes_back_to_a_shared_environment_installs_itself_again(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other, shared = tmp_path_factory.mktemp("other"), f"VENV={checkout / 'shared'}"
    shutil.copytree(checkout, other, dirs_exist_ok=True)
    for place in (checkout, other, checkout):
        assert make(place, "env", shared).returncode == 0
    assert calls(checkout).count("-m pip install") == 2


def test_changed_requirements_install_again(checkout: Path) -> None:
    assert make(checkout, "env").returncode == 0
    later = (checkout / ".venv").stat().st_mtime + 60
    os.utime(checkout / "pyproject.toml", (later, later))
    assert make(checkout, "env").returncode == 0
    assert calls(checkout).count("-m pip install") == 2


def test_demo_passes_the_model_and_the_flags_on(checkout: Path) -> None:
    done = make(checkout, "demo", "MODEL=some/model", "ARGS=--page-size 16")
    assert done.returncode == 0, done.stderr
    expected = "-m sglang_jenga.demo --model some/model -- --page-size 16"
    assert calls(checkout).splitlines()[-1] == expected


def test_the_cpu_tests_say_that_the_gpu_tests_did_not_run(checkout: Path) -> None:
    done = make(checkout, "test")
    assert done.returncode == 0, done.stderr
    assert "GPU tests (tests/gpu): not run, " in done.stdout


def test_a_failed_test_run_fails_the_command(checkout: Path) -> None:
    assert make(checkout, "test", fail_at="-m pytest").returncode != 0


@pytest.mark.parametrize(
    ("fail_at", "what", "remedy"),
    [
        ("-m venv", "could not create the virtual environment .venv", "apt install python3-venv"),
        ("-m pip", "pip could not install the packages", "run the same make command again"),
        ("entry_points", "the packages are installed but do not load", "remove .venv"),
    ],
)
def test_a_failed_step_says_what_failed_and_what_to_do(
    checkout: Path, fail_at: str, what: str, remedy: str
) -> None:
    done = make(checkout, "env", fail_at=fail_at)
    assert done.returncode != 0
    assert f"set-up failed: {what}" in " ".join(done.stderr.split())
    assert "What to do: " in done.stderr and remedy in done.stderr
    assert make(checkout, "env").returncode == 0, "a failed set-up is not taken for a finished one"


def test_a_missing_interpreter_is_named(checkout: Path) -> None:
    done = make(checkout, "env", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "there is no no-such-python on this machine" in done.stdout
    assert "What to do: install Python 3.11 or newer" in done.stdout


def test_an_interpreter_that_is_too_old_is_refused_with_both_versions(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = checkout / "scripts/make_env.py"
    old = script.read_text(encoding="utf-8").replace("OLDEST = (3, 11)", "OLDEST = (9, 8)")
    script.write_text(old.replace('"python3.12", "python3.13", "python3.11"', ""), encoding="utf-8")
    done = make(checkout, "env")
    assert done.returncode != 0
    assert "too old: Python 9.8 or newer is needed" in done.stderr
    assert "PYTHON=/path/to/python3.12" in done.stderr
