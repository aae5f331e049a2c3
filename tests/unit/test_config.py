# SPDX-License-Identifier: Apache-2.0
"""Settings: sizes, typos and flags."""

from __future__ import annotations

import argparse

import pytest

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.config import (
    ARENA_SIZE,
    BACKEND_NAME,
    KNOWN,
    REFERENCE_ATTENTION,
    TEST_SEED,
    add_flags,
    export_flags,
    load_config,
    without_effect,
)


def test_nothing_set_means_the_stock_size() -> None:
    assert load_config({}).arena_bytes is None


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_size_is_an_error(blank: str) -> None:
    with pytest.raises(ConfigError, match=r"is set to .*: write a size"):
        load_config({ARENA_SIZE: blank})


@pytest.mark.parametrize("value", ["banana", "", "true", "2", " 1"])
def test_the_switch_is_one_or_zero(value: str) -> None:
    with pytest.raises(ConfigError, match="is not a switch: write 1 or 0"):
        load_config({REFERENCE_ATTENTION: value})
    assert load_config({REFERENCE_ATTENTION: "1"}) == load_config({REFERENCE_ATTENTION: "0"})


def test_a_server_without_the_backend_is_told_what_it_does_not_read() -> None:
    told = without_effect({ARENA_SIZE: "1G", "SGLANG_JENGA_SISE": "x", "PATH": "/bin"})
    assert [line.split("=")[0] for line in told] == [ARENA_SIZE, "SGLANG_JENGA_SISE"]
    assert not without_effect({REFERENCE_ATTENTION: "1", TEST_SEED: "5"})


def test_a_flag_that_nothing_would_read_is_an_error() -> None:
    environ: dict[str, str] = {}
    with pytest.raises(ConfigError, match="is for --radix-cache-backend jenga, which is not given"):
        export_flags(parsed("--jenga-arena-size", "3G"), environ)
    assert not environ


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


JENGA = ("--radix-cache-backend", BACKEND_NAME)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--radix-cache-backend")
    add_flags(parser)
    return parser.parse_args(arguments)


def test_flags_travel_as_environment_variables() -> None:
    """Every process of a server inherits them."""
    environ: dict[str, str] = {}
    export_flags(parsed(*JENGA, "--jenga-arena-size", "3G"), environ)
    assert load_config(environ).arena_bytes == 3 * 2**30


def test_a_flag_wins_over_the_environment() -> None:
    environ = {ARENA_SIZE: "1G"}
    export_flags(parsed(*JENGA, "--jenga-arena-size", "3G"), environ)
    assert load_config(environ).arena_bytes == 3 * 2**30


def test_without_flags_the_environment_stays_as_it_is() -> None:
    environ = {ARENA_SIZE: "1G"}
    export_flags(parsed(), environ)
    assert environ == {ARENA_SIZE: "1G"}
