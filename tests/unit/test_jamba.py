# SPDX-License-Identifier: Apache-2.0
"""Jamba: SGLang learns of its states, loads every tensor and answers as transformers does."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sglang_jenga.models.jamba_config import ARCHITECTURE, JambaConfig, register_jamba
from sglang_jenga.tiny import build
from sglang_jenga.tiny.tokenizer import CORPUS


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("jamba", tmp_path_factory.mktemp("models") / "jamba")


@pytest.fixture
def config(checkpoint: Path) -> JambaConfig:
    return AutoConfig.from_pretrained(checkpoint)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class TestConfig:
    """What the plugin registered in this process, through SGLang's and transformers' seams."""

    def test_sglang_finds_the_states_in_the_configuration(self, config):
        from sglang.srt.configs.linear_attn_model_registry import get_linear_attn_config

        spec, found = get_linear_attn_config(config)
        assert found is config
        assert spec.arch_names == [ARCHITECTURE]
        assert spec.uses_mamba_radix_cache
        assert spec.support_mamba_cache_extra_buffer

    def test_the_backend_that_is_named_exists(self, config):
        from sglang.srt.configs.linear_attn_model_registry import (
            get_linear_attn_config,
            import_backend_class,
        )

        from sglang_jenga.models.mamba1_backend import Mamba1AttnBackend

        spec, _ = get_linear_attn_config(config)
        assert import_backend_class(spec.backend_class_name) is Mamba1AttnBackend

    def test_registering_again_changes_nothing(self):
        from sglang.srt.configs import linear_attn_model_registry as registry

        before = list(registry._LINEAR_ATTN_MODEL_REGISTRY)
        register_jamba()
        assert before == registry._LINEAR_ATTN_MODEL_REGISTRY

    def test_layers_are_one_kind_or_the_other(self, config):
        assert config.full_attention_layer_ids == [4]
        assert config.mamba_layer_ids == [0, 1, 2, 3, 5, 6, 7]

    def test_a_slot_is_sized_for_this_rank(self, config):
        from sglang.srt.runtime_context import get_context

        with get_context().override_server_args(device="cpu", tp_size=2):
            params = config.mamba2_cache_params
        assert params.shape.conv == [(256, 3)]
        assert params.shape.temporal == (256, 1, 16)
        assert params.layers == config.mamba_layer_ids

    def test_states_of_a_float32_model_are_not_rounded(self, config, monkeypatch):
        monkeypatch.delenv("SGLANG_MAMBA_CONV_DTYPE", raising=False)
        dtypes = config._state_dtypes
        assert (dtypes.conv, dtypes.temporal) == (torch.float32, torch.float32)
        monkeypatch.setenv("SGLANG_MAMBA_CONV_DTYPE", "float16")
        assert config._state_dtypes.conv == torch.float16

    def test_transformers_still_finds_its_model_and_tokenizer(self, checkpoint):
        assert type(AutoModelForCausalLM.from_pretrained(checkpoint)).__name__ == ARCHITECTURE
        assert AutoTokenizer.from_pretrained(checkpoint).bos_token_id is not None


class TestWeights:
    @pytest.fixture
    def make(self, config) -> Iterator[Callable[..., torch.nn.Module]]:
        """SGLang's model as one rank of ``tp_size`` builds it, without process groups."""
        from sglang.srt.runtime_context import get_context, get_parallel

        from sglang_jenga.models.jamba import JambaForCausalLM

        def build_model(tp_size: int = 1, rank: int = 0) -> torch.nn.Module:
            ranks = dict.fromkeys(("tp_rank", "attn_tp_rank", "moe_tp_rank"), rank)
            group = SimpleNamespace(rank_in_group=rank, world_size=tp_size, cpu_group=None)
            groups = dict.fromkeys(("tp_group", "attn_tp_group", "moe_tp_group"), group)
            with (
                get_context().override_server_args(device="cpu", tp_size=tp_size),
                get_parallel().override(**ranks, **groups, moe_ep_rank=0, pp_rank=0),
            ):
                return JambaForCausalLM(config)

        yield build_model

    def test_every_tensor_has_a_place_and_every_place_a_tensor(self, make, checkpoint):
        from sglang_jenga.models.jamba_weights import checkpoint_places

        assert checkpoint_places(make(), num_experts=4).keys() == tensors(checkpoint).keys()

    def test_every_parameter_is_overwritten(self, make, checkpoint):
        model = make()
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(torch.nan)
        stored = tensors(checkpoint)
        assert model.load_weights(stored.items()) == stored.keys()
        left = [name for name, param in model.named_parameters() if param.isnan().any()]
        assert left == []

    def test_a_lacking_tensor_is_named(self, make, checkpoint):
        stored = tensors(checkpoint)
        del stored["model.layers.1.feed_forward.experts.3.up_proj.weight"]
        with pytest.raises(ValueError, match=r"lacks 1 of 171 tensors .*experts\.3\.up_proj"):
            make().load_weights(stored.items())

    def test_a_tensor_without_a_place_is_named(self, make, checkpoint):
        stored = tensors(checkpoint) | {"model.layers.0.mamba.E": torch.zeros(1)}
        with pytest.raises(ValueError, match=r"'model\.layers\.0\.mamba\.E' has no place"):
            make().load_weights(stored.items())

    def test_two_ranks_split_the_channels(self, make, checkpoint):
        stored = tensors(checkpoint)
        ranks = [make(tp_size=2, rank=rank) for rank in (0, 1)]
        for model in ranks:
            model.load_weights(stored.items())
        mixers = [model.model.layers[0].mamba for model in ranks]
        prefix = "model.layers.0.mamba."
        split_by_rows = ("A_log", "D", "conv1d.weight", "conv1d.bias", "dt_proj.weight")
        split_by_columns = ("x_proj.weight", "out_proj.weight")
        for name in (*split_by_rows, *split_by_columns):
            dim = 1 if name in split_by_columns else 0
            parts = [mixer.get_parameter(name) for mixer in mixers]
            assert torch.equal(torch.cat(parts, dim), stored[prefix + name]), name
        x_and_gate = [mixer.in_proj.weight.chunk(2) for mixer in mixers]
        whole = torch.cat([torch.cat(both) for both in zip(*x_and_gate, strict=True)])
        assert torch.equal(whole, stored[prefix + "in_proj.weight"])

    def test_channels_that_ranks_cannot_share_are_refused(self, make):
        with pytest.raises(ValueError, match="512 Mamba channels cannot be shared by 3 ranks"):
            make(tp_size=3)


ENGINE = """
import json, sys
import sglang
from sglang_jenga.models import register_models

if __name__ == "__main__":
    path, (prompts, more), options = sys.argv[1], *map(json.loads, sys.argv[2:])
    register_models(override=True)
    engine = sglang.Engine(
        model_path=path, dtype="float32", device="cpu", max_total_tokens=4096,
        max_mamba_cache_size=32, mem_fraction_static=0.5, log_level="error", **options
    )
    rounds = []
    for _ in range(2):
        answers = engine.generate(
            input_ids=prompts,
            sampling_params={"temperature": 0, "max_new_tokens": 80, "ignore_eos": True},
            return_logprob=True,
        )
        facts = [answer["meta_info"] for answer in answers]
        rounds.append([
            (prompt, fact["cached_tokens"], fact["output_token_logprobs"])
            for prompt, fact in zip(prompts, facts)
        ])
        prompts = [p + a["output_ids"] + more for p, a in zip(prompts, answers)]
    print("ANSWERS" + json.dumps(rounds))
    engine.shutdown()
"""


@pytest.mark.server
@pytest.mark.parametrize(
    "options",
    [
        {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True},
        {"mamba_radix_cache_strategy": "extra_buffer", "mamba_track_interval": 64},
    ],
    ids=lambda options: options["mamba_radix_cache_strategy"],
)
def test_jamba_served_by_sglangs_own_pools_equals_transformers(checkpoint, tmp_path, options):
    """Greedy tokens and their log-probabilities: uncached, in chunks, and behind what was computed
    before, prompts and answers."""
    ids = AutoTokenizer.from_pretrained(checkpoint)(CORPUS.read_text(encoding="utf-8")).input_ids
    prompts, more = [ids[:20], ids[100:250], ids[300:700]], ids[800:830]
    options = options | {"chunked_prefill_size": 128}  # the longest prompt's state is carried on

    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    arguments = [str(checkpoint), json.dumps([prompts, more]), json.dumps(options)]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    line = next((x for x in done.stdout.splitlines() if x.startswith("ANSWERS")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-4000:]
    rounds = json.loads(line.removeprefix("ANSWERS"))

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for prompt, _, served in (answer for answers in rounds for answer in answers):
        tokens = [token for _, token, _ in served]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor([logprob for logprob, _, _ in served]), expected, atol=1e-3, rtol=0
        )
    assert [cached for _, cached, _ in rounds[0]] == [0, 0, 0]
    assert all(cached >= 64 for _, cached, _ in rounds[1]), "no state was found in the cache"
