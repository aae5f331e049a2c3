# SPDX-License-Identifier: Apache-2.0
"""These tests use the machines of tests/unit, in the configuration that its tests run in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from unit.conftest import plugins, published

__all__ = ["plugins", "published"]
