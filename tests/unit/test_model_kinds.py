# SPDX-License-Identifier: Apache-2.0
"""Kinds are read off the built model; a layer that cannot be held is refused by name."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sink_window.policy import SinkWindow
from transformers import LlamaConfig

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import UNCHECKED
from sglang_jenga.core.policies import Chunked, Cross, Full, State, Window
from sglang_jenga.sglang_ext.model_kinds import ModelKinds, read_model_kinds
from sglang_jenga.sglang_ext.setup import classify, embedding_cache_bytes, setup_of


def attention(layer_id: int, **settings: Any) -> RadixAttention:
    settings = {"num_heads": 4, "head_dim": 16, "num_kv_heads": 2, "scaling": 1.0, **settings}
    return RadixAttention(layer_id=layer_id, **settings)


def model(*layers: torch.nn.Module) -> torch.nn.Module:
    """A model as SGLang builds them: attention somewhere below its layers."""
    built = torch.nn.Module()
    built.layers = torch.nn.ModuleList()
    for layer in layers:
        block = torch.nn.Module()
        block.attn = layer
        built.layers.append(block)
    return built


def read(*layers: torch.nn.Module, chunk_tokens: int | None = None) -> ModelKinds:
    return read_model_kinds(model(*layers), chunk_tokens)


def ids(layers: Any) -> list[int]:
    return [layer.layer_id for layer in layers]


# ---- what is read ------------------------------------------------------------------------------


def test_layers_without_a_window_are_one_full_kind() -> None:
    kinds = read(*(attention(i) for i in range(3)))
    assert ids(kinds.full) == [0, 1, 2] and kinds.window == ()
    (spec,) = kinds.specs(torch.bfloat16)
    assert spec.policy == Full()
    assert spec.payload_bytes == 3 * 2 * (2 * 16 * 2), "layers x (K, V) x heads x dim x bytes"


def test_windows_are_what_the_layers_compute_not_what_names_say() -> None:
    kinds = read(*(attention(i, sliding_window_size=-1 if i % 3 == 2 else 48) for i in range(6)))
    assert ids(kinds.full) == [2, 5] and ids(kinds.window) == [0, 1, 3, 4]
    full, window = kinds.specs(torch.bfloat16)
    assert (full.policy, window.policy) == (Full(), Window(window_tokens=48))


def test_chunked_layers_take_their_span_from_the_model() -> None:
    kinds = read(attention(0, use_irope=True), attention(1), chunk_tokens=64)
    assert kinds.specs(torch.bfloat16)[1].policy == Chunked(chunk_tokens=64)


def test_kinds_may_have_heads_of_their_own() -> None:
    kinds = read(
        attention(0, num_kv_heads=1, head_dim=128),
        attention(1, num_kv_heads=2, head_dim=64, v_head_dim=32, sliding_window_size=9),
    )
    assert kinds.full[0].heads() == (1, 128, 128)
    assert kinds.window[0].heads() == (2, 64, 32)


def test_layers_that_share_the_k_and_v_of_an_earlier_layer_cost_nothing() -> None:
    kinds = read(attention(0), attention(1, sliding_window_size=8), attention(0), attention(0))
    assert ids(kinds.full) == [0] and ids(kinds.window) == [1]


def test_a_layer_shared_by_readers_of_different_reach_keeps_what_the_furthest_reads() -> None:
    kinds = read(attention(0, sliding_window_size=8), attention(0), attention(1))
    assert ids(kinds.full) == [0, 1] and kinds.window == ()


def test_windows_of_different_length_are_one_kind_with_the_longest() -> None:
    layers = [attention(i, sliding_window_size=w) for i, w in enumerate((8, 32, 16))]
    assert read(*layers, attention(3)).span_tokens == 32


def stating(layer: RadixAttention, policy: object) -> RadixAttention:
    layer.kv_policy = policy
    return layer


def test_a_layer_may_state_a_policy_that_sglang_has_no_word_for() -> None:
    sinks = SinkWindow(sink_tokens=2, window_tokens=8)
    kinds = read(stating(attention(0), sinks), attention(1), stating(attention(2), sinks))
    assert ids(kinds.full) == [1] and ids(kinds.window) == [0, 2]
    assert kinds.specs(torch.bfloat16)[1].policy == sinks


@pytest.mark.parametrize("policy", ["window", State(), Full()])
def test_a_stated_policy_must_forget_something_token_by_token(policy: object) -> None:
    with pytest.raises(ConfigError, match="only policies with a span can be stated"):
        read(attention(0), stating(attention(1), policy))


def test_policies_of_which_none_keeps_what_the_other_needs_are_refused() -> None:
    few, many = (SinkWindow(sink_tokens=n, window_tokens=8) for n in (2, 4))
    layers = [attention(0), stating(attention(1), few), stating(attention(2), many)]
    with pytest.raises(ConfigError, match=r"layer 2 uses sink_window\(4, 8\) attention beside"):
        read(*layers)


@pytest.mark.parametrize("container", [dict, list])
def test_layers_in_a_plain_container_are_seen_too(container: type) -> None:
    """SGLang's Transformers models keep theirs in a dict, which torch does not look into."""
    layers = {i: attention(i, sliding_window_size=8 if i else -1) for i in range(3)}
    built = torch.nn.Module()
    built.attention_instances = layers if container is dict else list(layers.values())
    kinds = read_model_kinds(built, None)
    assert ids(kinds.full) == [0] and ids(kinds.window) == [1, 2]


def test_layers_that_attend_to_images_are_a_kind_of_their_own() -> None:
    kinds = read(*(attention(i, is_cross_attention=i in (1, 4)) for i in range(6)))
    assert ids(kinds.full) == [0, 2, 3, 5] and ids(kinds.cross) == [1, 4]
    full, cross = kinds.specs(torch.bfloat16)
    assert cross.policy == Cross()
    assert cross.payload_bytes * 2 == full.payload_bytes


def test_encoder_layers_that_store_nothing_are_no_kind() -> None:
    kinds = read(attention(0), attention(1, attn_type=AttentionType.ENCODER_ONLY))
    assert ids(kinds.full) == [0]


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "chunk_tokens", "named"),
    [
        pytest.param(
            [
                attention(0),
                attention(1, is_cross_attention=True),
                attention(2, sliding_window_size=8),
            ],
            None,
            r"layer 1 uses cross attention in a model with windows",
            id="cross attention beside windows",
        ),
        pytest.param(
            [attention(0), attention(1, is_cross_attention=True, num_kv_heads=1)],
            None,
            r"layer 1 uses other K/V heads .*\(1, 16, 16\): layer 0, in the same pool",
            id="cross layers with other heads",
        ),
        pytest.param(
            [attention(0), attention(1, num_kv_heads=1)],
            None,
            r"layer 1 uses other K/V heads .*\(1, 16, 16\): layer 0, .*\(2, 16, 16\)",
            id="heads differ within a kind",
        ),
        pytest.param(
            [attention(0), attention(0, head_dim=8)],
            None,
            r"layer 0 \(layers\.1\.attn\) uses K/V shared between different head shapes",
            id="a shared layer of another shape",
        ),
        pytest.param(
            [attention(i, sliding_window_size=8) for i in range(2)],
            None,
            r"layer 0 uses window\(8\) attention like every other layer",
            id="no full layer",
        ),
        pytest.param(
            [attention(0), attention(1, sliding_window_size=8), attention(2, use_irope=True)],
            64,
            r"layer 2 uses chunked\(64\) attention beside window",
            id="windows and chunks",
        ),
        pytest.param(
            [attention(0), attention(1, use_irope=True)],
            None,
            r"layer 1 .*the model states no chunk size",
            id="chunks of unknown length",
        ),
        pytest.param(
            [attention(0), attention(2)],
            None,
            r"layer 1 uses no K/V while later layers store some",
            id="a layer without K/V in between",
        ),
        pytest.param([], None, "no attention layer that stores K/V", id="no attention"),
    ],
)
def test_a_layer_that_cannot_be_held_is_refused_by_name(
    layers: list[RadixAttention], chunk_tokens: int | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        read(*layers, chunk_tokens=chunk_tokens)


# ---- what SGLang is told -----------------------------------------------------------------------


def runner(
    built: torch.nn.Module,
    *,
    hf_config: Any = None,
    mla: bool = False,
    encoder: str | None = None,
    page_size: int = 1,
    multimodal: bool = False,
) -> Any:
    """The parts of a ModelRunner that ``classify`` reads and writes.

    ``encoder``: the architecture's name, where it is an encoder and a decoder.
    """
    hf_config = hf_config or LlamaConfig(architectures=[encoder or "LlamaForCausalLM"])
    return SimpleNamespace(
        model=built,
        device="cpu",
        page_size=page_size,
        use_mla_backend=mla,
        is_hybrid_swa=False,
        sliding_window_size=None,
        model_config=SimpleNamespace(
            hf_config=hf_config,
            hf_text_config=hf_config,
            is_draft_model=False,
            is_encoder_decoder=encoder is not None,
            is_multimodal=multimodal or encoder is not None,
            hidden_size=32,
            dtype=torch.bfloat16,
            linear_attn_registry_result=None,
            attention_chunk_size=None,
            is_hybrid_swa=False,
            swa_attention_layer_ids=None,
            full_attention_layer_ids=None,
        ),
    )


def test_sglang_sees_the_split_that_was_read() -> None:
    """Gemma-3 in SGLang 0.5.23: windows are computed, but its pools are full-length."""
    subject = runner(model(attention(0, sliding_window_size=8), attention(1)))
    classify(subject)
    config = subject.model_config
    assert subject.is_hybrid_swa and config.is_hybrid_swa and subject.sliding_window_size == 8
    assert (config.swa_attention_layer_ids, config.full_attention_layer_ids) == ([0], [1])
    assert not setup_of(config).stock.is_hybrid, "what stock pools would hold is remembered"


def test_a_model_whose_windows_nobody_computes_is_uniform_whatever_its_config_says() -> None:
    """Mistral in SGLang 0.5.23 computes full attention: window pools would lose its K/V."""
    subject = runner(model(attention(0), attention(1)))
    subject.is_hybrid_swa = subject.model_config.is_hybrid_swa = True
    subject.model_config.swa_attention_layer_ids = [0]
    subject.model_config.full_attention_layer_ids = [1]
    classify(subject)
    assert not subject.is_hybrid_swa and not subject.model_config.is_hybrid_swa
    assert setup_of(subject.model_config).stock.window_layers == (0,)


def test_latent_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"latent \(MLA\) rows.*Drop --radix-cache-backend"):
        classify(runner(model(attention(0)), mla=True))


def with_module(name: str) -> torch.nn.Module:
    built = model(attention(0))
    built.layers[0].add_module(name, torch.nn.Linear(2, 2))
    return built


@pytest.mark.parametrize("name", ["indexer", "compressor", "index_qkv_proj", "index_k_norm"])
def test_rows_that_a_model_keeps_beside_its_layers_are_refused_by_their_maker(name: str) -> None:
    named = rf"module layers\.0\.{name} \(Linear\), uses index keys"
    with pytest.raises(ConfigError, match=named):
        classify(runner(with_module(name)))


@pytest.mark.parametrize(
    ("architecture", "fields", "named"),
    [
        ("DeepseekV4ForCausalLM", {}, "compressed K/V"),
        ("DeepseekV4ForCausalLMNextN", {}, "compressed K/V"),
        ("MiniMaxM3SparseForConditionalGeneration", {}, "index keys"),
        ("Qwen4ExpForConditionalGeneration", {}, "index keys"),
        ("NewForCausalLM", {"compress_ratios": [0, 4, 128]}, "'compress_ratios' is set"),
        ("NewForCausalLM", {"indexer_n_heads": 8}, "'indexer_n_heads' is set"),
        ("NewForCausalLM", {"index_topk": 2048}, "'index_topk' is set"),
        ("NewForCausalLM", {"sparse_attention_config": {"a": 1}}, "'sparse_attention_config'"),
    ],
)
def test_rows_that_a_configuration_states_are_refused_by_name(
    architecture: str, fields: dict[str, Any], named: str
) -> None:
    config = LlamaConfig(architectures=[architecture], **fields)
    with pytest.raises(ConfigError, match=rf"{architecture} uses .*{named}.*Drop --radix-cache"):
        classify(runner(model(attention(0)), hf_config=config))


def test_encoders_are_told_apart_before_their_layers_are_looked_at() -> None:
    """Whisper numbers its layers from its encoder's on: the gap is not why it is refused."""
    with pytest.raises(ConfigError, match="does not support WhisperForConditionalGeneration"):
        classify(runner(model(attention(7)), encoder="WhisperForConditionalGeneration"))


MLLAMA = "MllamaForConditionalGeneration"


def with_images() -> torch.nn.Module:
    return model(attention(0), attention(1, is_cross_attention=True))


def test_a_model_with_images_is_told_that_the_tree_takes_them_one_by_one() -> None:
    subject = runner(with_images(), encoder=MLLAMA)
    classify(subject)
    assert subject.model.images_apart
    assert not subject.is_hybrid_swa


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (runner(with_images(), encoder="WhisperModel"), r"does not support WhisperModel.*Mllama"),
        (runner(with_images(), encoder=MLLAMA, page_size=16), r"--page-size \(value 16\)"),
    ],
    ids=["another encoder-decoder model", "pages of more tokens"],
)
def test_encoders_that_were_not_checked_are_refused(subject: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        classify(subject)


@pytest.mark.parametrize(
    ("multimodal", "encoder", "side_cache_mb", "kept"),
    [
        (True, None, 3, True),
        (True, None, 0, False),  # the user wants none
        (False, None, 3, False),
        (True, MLLAMA, 3, False),  # images are K/V there
    ],
)
def test_embeddings_are_a_kind_where_sglang_would_cache_them(
    multimodal: bool,
    encoder: str | None,
    side_cache_mb: int,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_VLM_CACHE_SIZE_MB", str(side_cache_mb))
    built = with_images() if encoder else model(attention(0), attention(1))
    subject = runner(built, encoder=encoder, multimodal=multimodal)
    classify(subject)
    specs = {s.name: s for s in setup_of(subject.model_config).kinds.specs(torch.bfloat16)}
    assert ("vision" in specs) is kept
    assert embedding_cache_bytes(subject.model_config) == (side_cache_mb * 2**20 if kept else 0)
    if kept:
        assert specs["vision"].payload_bytes == 32 * 2, "a token's embedding"


def recurrent(*, temporal: tuple[int, ...]) -> SimpleNamespace:
    """A registered recurrent model whose layers 1 and 2 keep a convolution and maybe a state."""
    params = SimpleNamespace(
        layers=[1, 2],
        shape=SimpleNamespace(conv=[(6, 3)], temporal=temporal),
        dtype=SimpleNamespace(conv=torch.bfloat16, temporal=torch.float32),
    )
    return SimpleNamespace(mamba2_cache_params=params)


@pytest.mark.parametrize(("temporal", "parts"), [((4, 5), 4), ((0,), 2)])
def test_what_recurrent_layers_keep_is_a_kind_of_its_own_after_the_others(
    temporal: tuple[int, ...], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sglang.srt.configs.hybrid_arch.mambaish_config", lambda _: recurrent(temporal=temporal)
    )
    subject = runner(model(attention(0), attention(3)))
    classify(subject)
    full, states = setup_of(subject.model_config).kinds.specs(torch.bfloat16)
    assert [row.layer_id for row in full.rows[::2]] == [0, 3], "gaps are where states live"
    assert states.policy == State() and len(states.rows) == parts
    assert states.payload_bytes == 2 * (6 * 3 * 2 + math.prod(temporal) * 4)


def test_what_is_known_of_a_model_s_state_kernels_is_kept_for_its_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "sglang.srt.configs.hybrid_arch.mambaish_config", lambda _: recurrent(temporal=(0,))
    )
    subject = runner(model(attention(0)))
    classify(subject)
    assert setup_of(subject.model_config).state_kernels is UNCHECKED
    subject = runner(model(attention(0)))
    monkeypatch.setattr("sglang.srt.configs.hybrid_arch.mambaish_config", lambda _: None)
    classify(subject)
    assert setup_of(subject.model_config).state_kernels is None


def test_a_model_loaded_without_the_hook_is_noticed() -> None:
    with pytest.raises(ConfigError, match="loaded without Jenga's hook"):
        setup_of(SimpleNamespace())
