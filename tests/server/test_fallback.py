# SPDX-License-Identifier: Apache-2.0
"""Models that SGLang runs by their Transformers code, whose attention layers torch does not list,
are served from the arena with the answers of SGLang's own pools."""

from __future__ import annotations

import json
import random
import shutil
import urllib.request
from pathlib import Path

import pytest
import torch

from server.client import Client
from server.launch import ServerSpec, serving
from sglang_jenga.tiny import build

FLAGS = ("--max-total-tokens", "4096", "--chunked-prefill-size", "128")


def vault_gemma(folder: Path) -> Path:
    """A tiny VaultGemma: windows of 64 tokens in every other layer; words of the tiny Llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    words = build("llama", folder / "llama")
    vocabulary = json.loads((words / "config.json").read_text())["vocab_size"]
    config = AutoConfig.for_model(
        "vaultgemma", vocab_size=vocabulary, hidden_size=128, intermediate_size=128,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        sliding_window=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weights in model.named_parameters():
        if weights.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder / "vault")
    for file in words.glob("*token*"):
        shutil.copy(file, folder / "vault")
    return folder / "vault"


def answer(url: str, prompt: list[int]) -> tuple[list[int], int]:
    """Tokens of the answer, and how many of the prompt came from the cache."""
    body = {
        "input_ids": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True},
    }
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        found = json.load(response)
    return found["output_ids"], found["meta_info"]["cached_tokens"]


@pytest.mark.server
def test_a_transformers_model_with_windows_answers_as_on_sglangs_own_pools(tmp_path: Path) -> None:
    checkpoint = vault_gemma(tmp_path)
    rng = random.Random(1)
    long = [rng.randrange(5, 200) for _ in range(400)]
    prompts = [long[:50], long[:300], [*long[:300], 7, 8, 9], long[:200] + long[:150], long]
    found = {}
    for jenga in (False, True):
        spec = ServerSpec(model_path=checkpoint, jenga=jenga, flags=FLAGS)
        with serving(spec, tmp_path / f"jenga-{jenga}.log") as server:
            found[jenga] = [answer(server.url, prompt) for prompt in prompts]
            if jenga:
                kinds = Client(server.url).arena()["kinds"]
    assert found[True] == found[False]
    assert len({tuple(tokens) for tokens, _ in found[True]}) == len(prompts), "weights say nothing"
    assert [kind["name"] for kind in kinds] == ["full", "window"]
