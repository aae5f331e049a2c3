# SPDX-License-Identifier: Apache-2.0
"""The planner must start fast and anywhere: no tensor library, no engine."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import sglang_jenga

MODULES = [
    "sglang_jenga.core",
    *(
        f"sglang_jenga.core.{name}"
        for name in (
            *("capacity", "catalog", "demand", "errors", "geometry", "kinds", "managers"),
            *("configs.find", "configs.read", "model_kinds", "plan", "sizing"),
        )
    ),
]
FORBIDDEN = ("torch", "sglang", "numpy", "transformers")
SOURCE = str(Path(sglang_jenga.__file__).parents[1])


def loaded_after(statement: str) -> list[str]:
    code = f"import json, sys; sys.path.insert(0, {SOURCE!r}); {statement}; "
    code += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return json.loads(done.stdout)


def test_the_planner_modules_load_no_tensor_library_and_no_engine():
    modules = loaded_after(f"import {', '.join(MODULES)}")
    assert set(MODULES) <= set(modules)
    assert not [name for name in modules if name.split(".")[0] in FORBIDDEN]


def children_seconds() -> float:
    """Processor time of the processes that ended: what else runs on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_planner_modules_import_in_under_300_ms():
    took = []
    for _ in range(3):
        start = children_seconds()
        loaded_after(f"import {', '.join(MODULES)}")
        took.append(children_seconds() - start)
    assert min(took) < 0.3
