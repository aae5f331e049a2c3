# SPDX-License-Identifier: Apache-2.0
"""Claims about the catalogue: layer counts, spans and bytes of published models."""

import pytest

from sglang_jenga.core.catalog import CATALOG, model_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.policies import State

# model: {kind: (layers, span)}
LAYERS = {
    "llama31-8b": {"full": (32, None)},
    "gemma2-9b": {"full": (21, None), "window": (21, 4096)},
    "gemma3-27b": {"full": (10, None), "window": (52, 1024)},
    "gemma4-31b": {"full": (10, None), "window": (50, 1024)},
    "gemma4-e4b": {"full": (4, None), "window": (20, 512)},
    "gpt-oss-20b": {"full": (12, None), "window": (12, 128)},
    "ministral-8b": {"full": (9, None), "window": (27, 32768)},
    "llama4-scout": {"full": (12, None), "chunked": (36, 8192)},
    "llama32-11b-vision": {"full": (32, None), "cross": (8, None)},
    "jamba-v0.1": {"full": (4, None), "state": (28, None)},
    "qwen3-next-80b": {"full": (12, None), "state": (36, None)},
    "qwen3-next-80b-fp32ssm": {"full": (12, None), "state": (36, None)},
    "falcon-h1-7b": {"full": (44, None), "state": (44, None)},
    "granite-4.0-h-small": {"full": (4, None), "state": (36, None)},
    "nemotron-h-8b": {"full": (4, None), "state": (24, None)},
}


def layer_ids(kind):
    return list(dict.fromkeys(row.layer_id for row in kind.rows))


def test_the_table_covers_the_catalogue():
    assert set(LAYERS) == set(CATALOG)


@pytest.mark.parametrize("model", LAYERS)
def test_layers_and_spans_of_every_model(model):
    found = {kind.name: (kind.num_layers, kind.policy.span_tokens) for kind in model_kinds(model)}
    assert found == LAYERS[model]


@pytest.mark.parametrize("model", LAYERS)
def test_kinds_are_named_after_their_policy_and_say_where_they_come_from(model):
    assert all(kind.name == kind.policy.NAME for kind in model_kinds(model))
    assert "/" in CATALOG[model].source


@pytest.mark.parametrize("model", [m for m in LAYERS if m != "falcon-h1-7b"])
def test_no_layer_belongs_to_two_kinds(model):
    layers = [layer for kind in model_kinds(model) for layer in layer_ids(kind)]
    assert len(layers) == len(set(layers))


def test_falcon_h1_runs_attention_and_mamba_in_every_layer():
    full, state = model_kinds("falcon-h1-7b")
    assert layer_ids(full) == layer_ids(state) == list(range(44))


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("gemma3-27b", "full", [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]),
        ("gemma4-e4b", "full", [5, 11, 17, 23]),  # 29, 35, 41 reuse layer 23
        ("llama4-scout", "full", [3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47]),
        ("llama32-11b-vision", "cross", [3, 8, 13, 18, 23, 28, 33, 38]),
        ("jamba-v0.1", "full", [4, 12, 20, 28]),
        ("granite-4.0-h-small", "full", [5, 15, 25, 35]),
        ("nemotron-h-8b", "full", [7, 18, 29, 40]),
    ],
)
def test_layer_numbers_of_models_with_irregular_patterns(model, kind, expected):
    kinds = {k.name: k for k in model_kinds(model)}
    assert layer_ids(kinds[kind]) == expected


def test_gemma4_stores_other_head_sizes_in_full_and_in_window_layers():
    full, window = model_kinds("gemma4-31b")
    assert {row.row_bytes for row in full.rows} == {4 * 512 * 2}
    assert {row.row_bytes for row in window.rows} == {16 * 256 * 2}


def test_states_are_part_major_and_keep_their_own_dtypes():
    _, state = model_kinds("qwen3-next-80b-fp32ssm")
    assert state.policy == State()
    assert [row.part for row in state.rows] == ["conv0"] * 36 + ["temporal"] * 36
    assert {(r.part, r.row_bytes, r.itemsize_bytes) for r in state.rows} == {
        ("conv0", 8192 * 3 * 2, 2),
        ("temporal", 32 * 128 * 128 * 4, 4),
    }


def test_an_fp8_cache_halves_attention_and_leaves_states_alone():
    for bf16, fp8 in zip(
        model_kinds("jamba-v0.1"), model_kinds("jamba-v0.1", kv_itemsize=1), strict=True
    ):
        factor = 1 if bf16.policy == State() else 2
        assert bf16.payload_bytes == factor * fp8.payload_bytes


def test_an_unknown_model_is_answered_with_the_closest_names():
    with pytest.raises(ConfigError, match=r"no model 'gemma3' among the 15 .*gemma3-27b"):
        model_kinds("gemma3")
