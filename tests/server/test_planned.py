# SPDX-License-Identifier: Apache-2.0
"""A real server builds the arena that the command predicts, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from server.client import Client
from server.launch import serving
from server.matrix import prepare
from server.planned import booted, differences, settings_of, spec_of


@pytest.mark.server
def test_a_server_builds_the_arena_that_was_planned(pytestconfig: pytest.Config) -> None:
    """Gemma 4: full and window layers with heads of their own, and layers that store nothing.

    ``benchmark/plan`` does the same for every tested family.
    """
    work_dir = pytestconfig.rootpath / "build" / "identity"
    checkpoint = prepare("gemma4", work_dir).checkpoint
    flags = settings_of("gemma4")["page16"].plan
    command = [sys.executable, "-m", "sglang_jenga.cli", "plan", str(checkpoint), *flags]
    printed = subprocess.run(
        [*command, "--format", "json"], check=True, capture_output=True, text=True
    ).stdout
    predicted = booted(json.loads(printed))
    spec = spec_of("gemma4", "page16", checkpoint)
    with serving(spec, work_dir / "logs" / "test-planned.log") as server:
        real = booted(Client(server.url).arena())
    assert not differences(predicted, real)
    assert [kind["name"] for kind in real["kinds"]] == ["full", "window"]
