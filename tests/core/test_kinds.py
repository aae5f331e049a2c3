# SPDX-License-Identifier: Apache-2.0
"""Claims about what a kind may be. What a kind needs of a request is tested with capacity."""

import pytest

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec, RowSpec, attention_kind
from sglang_jenga.core.policies import Chunked, Full, Window


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: KindSpec(name="a", policy=Full(), rows=()),
            "kind 'a' has no rows",
        ),
        (
            lambda: attention_kind(
                "a",
                Full(),
                [3, 3],
                num_kv_heads=1,
                k_head_dim=8,
                v_head_dim=8,
                itemsize=2,
            ),
            "lists layer 3 part 'k' twice",
        ),
        (lambda: Window(window_tokens=0), "window_tokens must be a positive integer, got 0"),
        (lambda: Chunked(chunk_tokens=None), "chunk_tokens must be a positive integer, got None"),
        (lambda: RowSpec(layer_id=0, part="k", row_bytes=-1), "row_bytes must be a positive"),
        (lambda: RowSpec(layer_id=-1, part="k", row_bytes=1), "layer number >= 0, got -1"),
        (lambda: RowSpec(layer_id=2, part="", row_bytes=1), "layer 2: a row needs a part name"),
        (
            lambda: RowSpec(layer_id=2, part="k", row_bytes=6, itemsize_bytes=4),
            "row_bytes 6 is not a multiple of its element size 4 B",
        ),
    ],
)
def test_a_contradictory_kind_is_refused_in_words(make, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make()
