# SPDX-License-Identifier: Apache-2.0
"""Ministral and Mistral compute the windows that transformers computes, when asked to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, MinistralConfig, MistralConfig

from sglang_jenga.models.ministral import MinistralForCausalLM, MistralForCausalLM, window_of_layer
from sglang_jenga.models.registration import PACKAGE, register_models
from sglang_jenga.tiny import build
from sglang_jenga.tiny.tokenizer import CORPUS

VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"


def windows(config) -> list[int | None]:
    return [window_of_layer(config, i) for i in range(config.num_hidden_layers)]


class TestWindowOfLayer:
    def test_follows_layer_types(self):
        types = ["full_attention", "sliding_attention"]
        config = MinistralConfig(num_hidden_layers=2, layer_types=types, sliding_window=48)
        assert windows(config) == [None, 48]

    def test_without_layer_types_every_layer_slides_as_mistral_v01_does(self):
        assert windows(MistralConfig(num_hidden_layers=2, sliding_window=4096)) == [4096, 4096]

    def test_later_mistrals_declare_no_window_and_have_none(self):
        assert windows(MistralConfig(num_hidden_layers=2, sliding_window=None)) == [None, None]

    def test_a_mistral_configuration_with_layer_types_is_read_as_transformers_reads_it(
        self, tmp_path
    ):
        settings = json.loads((build("ministral", tmp_path / "m") / "config.json").read_text())
        old_name = tmp_path / "old"
        old_name.mkdir()
        settings |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        (old_name / "config.json").write_text(json.dumps(settings))
        assert windows(AutoConfig.from_pretrained(old_name)) == [None, 48, 48, 48] * 2


class TestRegistration:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch):
        """SGLang's own registry for each test, whatever this process has registered before."""
        from sglang.srt.models import mistral
        from sglang.srt.models.registry import ModelRegistry

        monkeypatch.setenv(VARIABLE, "")
        models = dict(ModelRegistry.models)
        models.pop("MinistralForCausalLM", None)
        models["MistralForCausalLM"] = mistral.MistralForCausalLM
        monkeypatch.setattr(ModelRegistry, "models", models)

    def resolved(self, architecture: str) -> type:
        from sglang.srt.models.registry import ModelRegistry

        return ModelRegistry.resolve_model_cls([architecture])[0]

    def test_a_process_without_the_registry_only_leaves_word_for_it(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "sglang.srt.models.registry")
        for _ in range(2):
            register_models(override=True)
            assert "sglang.srt.models.registry" not in sys.modules, "seconds of imports for nothing"
        assert os.environ[VARIABLE] == PACKAGE

    def test_override_replaces_sglangs_mistral_and_adds_ministral(self):
        assert self.resolved("MistralForCausalLM").__module__ == "sglang.srt.models.mistral"
        register_models(override=True)
        assert self.resolved("MistralForCausalLM") is MistralForCausalLM
        assert self.resolved("MinistralForCausalLM") is MinistralForCausalLM

    def test_without_override_sglangs_own_mistral_stays(self):
        register_models(override=False)
        assert self.resolved("MistralForCausalLM").__module__ == "sglang.srt.models.mistral"
        assert self.resolved("MinistralForCausalLM") is MinistralForCausalLM

    def test_a_class_of_the_users_own_package_is_not_replaced(self):
        from sglang.srt.models.registry import ModelRegistry

        theirs = type("MistralForCausalLM", (), {"__module__": "their_models.mistral"})
        ModelRegistry.models["MistralForCausalLM"] = theirs
        register_models(override=True)
        assert self.resolved("MistralForCausalLM") is theirs

    def test_the_users_own_package_is_not_forgotten(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "their_models")
        register_models(override=True)
        assert os.environ[VARIABLE] == "their_models"
        assert self.resolved("MinistralForCausalLM") is MinistralForCausalLM


ENGINE = """
import json, sys
import sglang
from sglang_jenga.models import register_models

if __name__ == "__main__":
    path, prompts, new_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    register_models(override=True)
    engine = sglang.Engine(
        model_path=path, dtype="float32", device="cpu", max_total_tokens=4096,
        mem_fraction_static=0.5, log_level="error",
    )
    answers = engine.generate(
        input_ids=prompts,
        sampling_params={"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
        return_logprob=True,
    )
    print("ANSWERS" + json.dumps([a["meta_info"]["output_token_logprobs"] for a in answers]))
    engine.shutdown()
"""


@pytest.mark.server
def test_ministral_served_by_sglang_equals_transformers(tmp_path: Path):
    """Greedy tokens and their log-probabilities, on prompts up to eight windows long."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = build("ministral", tmp_path / "ministral")
    ids = AutoTokenizer.from_pretrained(path)(CORPUS.read_text(encoding="utf-8")).input_ids
    prompts = [ids[:20], ids[100:250], ids[300:700]]  # below, at and far above the window of 48
    new_tokens = 32  # carries the shortest prompt across its window

    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    command = [sys.executable, str(script), str(path), json.dumps(prompts), str(new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    line = next((x for x in done.stdout.splitlines() if x.startswith("ANSWERS")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-4000:]

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for prompt, served in zip(prompts, json.loads(line.removeprefix("ANSWERS")), strict=True):
        tokens = [token for _, token, _ in served]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor([logprob for logprob, _, _ in served]), expected, atol=1e-3, rtol=0
        )
