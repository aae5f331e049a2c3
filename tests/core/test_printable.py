# SPDX-License-Identifier: Apache-2.0
"""What files of others say is quoted without its control characters, in one short line."""

import pytest

from sglang_jenga.core.printable import MOST_SHOWN, printable, shown

HOSTILE = "a\x1b]0;X\x07\x1b[2J\r\n\x9b1m\u202eb\x00"


def test_nothing_that_a_terminal_acts_on_is_printed() -> None:
    assert printable(HOSTILE) == "a\\x1b]0;X\\x07\\x1b[2J\\r\\n\\x9b1m\\u202eb\\x00"
    assert printable("naïve 模型 40 GiB") == "naïve 模型 40 GiB"


@pytest.mark.parametrize(
    "value", [HOSTILE, HOSTILE * 9999, {HOSTILE: [HOSTILE] * 99}, [[[[[[1]]]]]] * 999, 10**3000]
)
def test_a_quoted_value_is_one_short_printable_line(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= MOST_SHOWN + 3


def test_a_value_however_deep_can_be_quoted() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
