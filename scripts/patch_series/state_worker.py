# SPDX-License-Identifier: Apache-2.0
"""The process behind ``states.Worker``: a job per line on stdin, an answer per line on stdout.

``python state_worker.py SECONDS``; imports nothing of this package, for it runs SGLang's tests.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import signal
import sys
import traceback
import unittest
from pathlib import Path
from typing import Any

#: What differs from state to state, what imports it, and what tests replace.
_STATES_OWN = ("sglang", "sgl_kernel", "upstream_", "kit_probe", "__main__")


def main(seconds: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tests print is no answer
    for line in sys.stdin:
        done = _forked(json.loads(line), seconds)
        _import_ahead(done.pop("modules", []))
        answers.write(json.dumps(done) + "\n")
        answers.flush()


def _forked(job: dict[str, Any], seconds: int) -> dict[str, Any]:
    """The answer to ``job``, made in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        signal.alarm(seconds)
        try:
            answer = _answer(job)
        except BaseException:  # whatever it is, the parent says it
            answer = {"died": traceback.format_exc(limit=-3)}
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return {"died": f"wait status {status}; {signal.SIGALRM.value}: more than {seconds} s"}
    answer: dict[str, Any] = json.loads(said)
    return answer


def _import_ahead(names: list[str]) -> None:
    """What the next children need not import: what a child imported besides SGLang.

    Raises:
        RuntimeError: one of them brought SGLang along, from another tree than the next child's.
    """
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    strays = [name for name in sys.modules if name.startswith("sglang")]
    if strays:
        raise RuntimeError(f"imported ahead, but of a state: {strays}")


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    root = Path(job["root"])
    sys.path.insert(0, str(root / "python"))
    importlib.invalidate_caches()
    before = set(sys.modules)
    tests: dict[str, str] = {}
    for file in job["tests"]:
        tests |= _run(root, file)
    answer = {
        "tests": tests,
        "symbols": {path: _resolves(path) for path in job["symbols"]},
        "defaults": _defaults() if job["defaults"] else {},
        "probe": _probe() if job["probe"] else {},
    }
    import sglang

    found = Path(sglang.__file__).parents[1]
    if found != root / "python":
        raise RuntimeError(f"the tests imported {found}, not {root / 'python'}")
    answer["modules"] = [
        name
        for name in sys.modules
        if name not in before
        and not name.startswith(_STATES_OWN)
        and getattr(sys.modules[name], "__file__", None)
    ]
    return answer


def _run(root: Path, file: str) -> dict[str, str]:
    """Outcomes of the tests in ``file``."""
    name = "upstream_" + file.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, root / file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception:
        return {file: "error: " + _last_line(traceback.format_exc())}
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = _Outcomes()
    suite.run(result)
    return {f"{file}::{test.removeprefix(name + '.')}": said for test, said in result.said.items()}


class _Outcomes(unittest.TestResult):
    """The outcome of each test by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.said.setdefault(test.id(), "ok")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.said[test.id()] = "failed: " + _last_line(self._exc_info_to_string(err, test))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self.said[test.id()] = "error: " + _last_line(self._exc_info_to_string(err, test))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.said[test.id()] = f"skipped: {reason}"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.said[test.id()] = "failed: " + _last_line(self._exc_info_to_string(err, test))


def _last_line(text: str) -> str:
    """The line of a traceback that says what was raised first."""
    first = text.split("During handling of the above exception")[0]
    lines = [line for line in first.strip().splitlines() if line and not line[0].isspace()]
    return lines[-1][:400] if lines else text[:400]


def _resolves(path: str) -> bool:
    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return True


def _defaults() -> dict[str, str]:
    """The default of every server argument and of every SGLang variable of the environment."""
    from sglang.srt.environ import envs
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path="none")
    found = {
        f"argument {name}": _text(getattr(args, name)) for name in ServerArgs.__struct_fields__
    }
    for name in dir(type(envs)):
        if hasattr(getattr(type(envs), name), "default"):
            found[f"variable {name}"] = _text(getattr(type(envs), name).default)
    return found


def _text(value: Any) -> str:
    """``value``, the same in every process: not by address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _probe() -> dict[str, str]:
    sys.path.insert(0, str(Path(__file__).parent))
    from kit_probe import probe

    return probe()


if __name__ == "__main__":
    main(int(sys.argv[1]))
