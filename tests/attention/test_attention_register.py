# SPDX-License-Identifier: Apache-2.0
"""When `jenga_ref` is selected: SGLang's own argument resolution, on models with backend lists."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.arg_groups import choices, resolution_hooks
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from sglang_jenga.attention import register

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "gpt-oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        **WINDOWS,
    },
    "exaone-4": {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "sliding_window_pattern": "LG",
        **WINDOWS,
    },
    "olmo-3": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo3", **WINDOWS},
}


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """`resolve(model, wanted=..., **server_args)` -> the resolved view, with our hook registered.

    Plugins are loaded as a server loads them, minus what an installed sglang-jenga registered.
    """
    load_plugins()
    others = {
        step: [hook for hook in hooks if not hook.__module__.startswith("sglang_jenga")]
        for step, hooks in resolution_hooks._HOOKS.items()
    }
    monkeypatch.setattr(resolution_hooks, "_HOOKS", others)
    # SGLang's adder is bound to the list object, so the list is emptied of our name in place.
    names = choices.ATTENTION_BACKEND_CHOICES
    before = list(names)
    names[:] = [name for name in names if name != register.BACKEND_NAME]
    monkeypatch.setattr(register, "_registered", False)
    monkeypatch.delenv(register.ENVIRONMENT_SWITCH, raising=False)

    def run(model: str, *, wanted: bool = False, loaded_first: bool = False, **server_args):
        path = tmp_path / model
        path.mkdir()
        (path / "config.json").write_text(json.dumps(COMMON | MODELS[model]))
        register.register_reference_backend(lambda args: wanted)
        if loaded_first:
            for hooks in others.values():
                hooks.sort(key=lambda hook: hook.__module__ != register.__name__)
        args = ServerArgs(
            model_path=str(path),
            device="cpu",
            skip_tokenizer_init=True,
            mem_fraction_static=0.1,
            **server_args,
        )
        args.resolve_once()
        return resolved_view(args)

    yield run
    names[:] = before


@pytest.mark.parametrize("model", MODELS)
def test_the_predicate_selects_it_on_cpu_for_every_model(resolve, model):
    assert resolve(model, wanted=True).attention_backend == "jenga_ref"


@pytest.mark.parametrize("model", MODELS)
def test_the_order_in_which_plugins_load_does_not_matter(resolve, model):
    assert resolve(model, wanted=True, loaded_first=True).attention_backend == "jenga_ref"


@pytest.mark.parametrize("model", MODELS)
def test_the_flag_selects_it_although_no_model_lists_it(resolve, model):
    view = resolve(model, attention_backend="jenga_ref")
    assert view.attention_backend == "jenga_ref"


def test_the_environment_selects_it_without_the_predicate(resolve, monkeypatch):
    monkeypatch.setenv(register.ENVIRONMENT_SWITCH, "1")
    assert resolve("llama").attention_backend == "jenga_ref"


def test_nothing_changes_unless_asked(resolve):
    assert resolve("llama").attention_backend == "torch_native"


@pytest.mark.parametrize("backend", ["torch_native", "triton"])
def test_an_explicit_backend_wins_over_the_predicate(resolve, backend):
    view = resolve("llama", wanted=True, attention_backend=backend)
    assert view.attention_backend == backend


def test_split_backends_are_selected_one_by_one(resolve):
    view = resolve("llama", prefill_attention_backend="jenga_ref")
    assert view.prefill_attention_backend == "jenga_ref"
    assert view.attention_backend == "torch_native"


def test_graph_capture_is_off_where_it_serves(resolve):
    graphs = resolve("llama", wanted=True).cuda_graph_config
    assert graphs.decode.backend == Backend.DISABLED
    assert graphs.prefill.backend == Backend.DISABLED


def test_registering_twice_adds_one_hook_per_step_and_one_choice(resolve):
    resolve("llama")
    register.register_reference_backend()
    for step in ("handle_model_specific_adjustments", "handle_attention_backend_compatibility"):
        modules = [hook.__module__ for hook in resolution_hooks._HOOKS[step]]
        assert modules.count(register.__name__) == 1
    assert choices.ATTENTION_BACKEND_CHOICES.count("jenga_ref") == 1
    assert "jenga_ref" in ATTENTION_BACKENDS


def test_latent_attention_is_refused_with_the_flag_to_change(resolve):
    resolve("llama")

    class Runner:
        use_mla_backend = True

    with pytest.raises(ValueError, match="--attention-backend jenga_ref"):
        ATTENTION_BACKENDS["jenga_ref"](Runner())
