# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them, and as they read them."""

import pytest

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.sizes import count, format_bytes, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("24GiB", 24 * 2**30),
        ("24G", 24 * 2**30),
        ("512m", 512 * 2**20),
        ("2gib", 2 * 2**30),
        ("2gb", 2 * 10**9),
        ("40GB", 40 * 10**9),
        ("1.5MB", 1_500_000),
        ("7kB", 7000),
        ("3TB", 3 * 10**12),
        ("100B", 100),
        ("0.1GB", 10**8),
        (" 1.5 GiB ", 3 * 2**29),
        ("1T", 2**40),
        ("7K", 7 * 1024),
    ],
)
def test_sizes_are_bytes_or_a_number_with_a_unit(text: str, expected: int) -> None:
    assert parse_size(text, name="SIZE") == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-4G", "4 potatoes", "1e9", "4GG", "0x10", " ", "100iB", "\u0664G"]
)
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SIZE=.*is not a size: .*such as 24GiB or 512M"):
        parse_size(text, name="SIZE")


@pytest.mark.parametrize("text", ["0", "0G", "0.0000001K"])
def test_a_size_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is zero: leave it out"):
        parse_size(text, name="SIZE")


@pytest.mark.parametrize("text", ["2000000T", "9" * 29])
def test_a_size_that_no_machine_has_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SIZE=.* is more than 1,048,576 TiB"):
        parse_size(text, name="SIZE")


def test_a_size_of_endless_digits_is_refused_in_a_short_line() -> None:
    with pytest.raises(ConfigError, match="is not a size") as refused:
        parse_size("9" * 400, name="SIZE")
    assert len(str(refused.value)) < 250


def test_what_is_printed_has_a_unit_that_keeps_it_short() -> None:
    assert [format_bytes(n) for n in (0, 2**20 - 1, 2**20, 24 * 2**30)] == [
        "0 B",
        "1,048,575 B",
        "1.00 MiB",
        "24.00 GiB",
    ]


def test_one_is_singular() -> None:
    assert (count(1, "slot"), count(1200, "slot")) == ("1 slot", "1,200 slots")
