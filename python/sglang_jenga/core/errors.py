# SPDX-License-Identifier: Apache-2.0
"""The two ways Jenga refuses: the user must change something, or the caller must wait."""


class JengaError(Exception):
    """Base of every error Jenga raises on purpose."""


class ConfigError(JengaError):
    """A configuration that can never work: abort, and tell the user what to change."""


class Exhausted(JengaError):
    """Not enough free bytes right now: queue the request, evict cached slots or retract."""


def require_positive(**values: int) -> None:
    """Raise ConfigError naming the first value that is not a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{name} must be a positive integer, got {value!r}")
