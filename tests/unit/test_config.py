# SPDX-License-Identifier: Apache-2.0
"""Settings: sizes, typos and flags."""

from __future__ import annotations

import argparse

import pytest

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.config import (
    ARENA_SIZE,
    KNOWN,
    add_flags,
    export_flags,
    load_config,
)


def test_nothing_set_means_the_stock_size() -> None:
    assert load_config({}).arena_bytes is None
    assert load_config({ARENA_SIZE: ""}).arena_bytes is None


def test_the_arena_size_comes_from_the_environment() -> None:
    assert load_config({ARENA_SIZE: "1G", "PATH": "/bin"}).arena_bytes == 2**30


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("SGLANG_JENGA_ARENA_SZE", ARENA_SIZE), ("SGLANG_JENGA_ARENASIZE", ARENA_SIZE)],
)
def test_a_misspelt_variable_is_an_error_that_suggests_the_right_one(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {typo}, did you mean {meant}"):
        load_config({typo: "1G"})


def test_a_variable_unlike_any_other_is_an_error_that_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"SGLANG_JENGA_XYZZY": "1"})
    assert all(name in str(caught.value) for name in KNOWN)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(arguments)


def test_flags_travel_as_environment_variables() -> None:
    """Every process of a server inherits them."""
    environ: dict[str, str] = {}
    export_flags(parsed("--jenga-arena-size", "3G"), environ)
    assert load_config(environ).arena_bytes == 3 * 2**30


def test_a_flag_wins_over_the_environment() -> None:
    environ = {ARENA_SIZE: "1G"}
    export_flags(parsed("--jenga-arena-size", "3G"), environ)
    assert load_config(environ).arena_bytes == 3 * 2**30


def test_without_flags_the_environment_stays_as_it_is() -> None:
    environ = {ARENA_SIZE: "1G"}
    export_flags(parsed(), environ)
    assert environ == {ARENA_SIZE: "1G"}
