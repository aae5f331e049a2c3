# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints are reproducible, load like real ones, and notice a wrong KV page."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from sglang_jenga.tiny import (
    ATTENTION_FAMILIES,
    IMAGE_FAMILIES,
    SPECS,
    STATE_FAMILIES,
    build,
    find_spec,
)
from sglang_jenga.tiny.specs import BENCH
from sglang_jenga.tiny.tokenizer import CORPUS, EOS_ID, TURN_END_ID, VOCAB_SIZE
from sglang_jenga.tiny.weights import initialise

# How transformers' model files name the functions that make their attention masks.
FULL_MASK = "create_causal_mask"
LOCAL_MASKS = ("create_sliding_window_causal_mask", "create_chunked_causal_mask")

NEW_TOKENS = 24
PROMPT_TOKENS = 230  # several times the largest window


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny")
    return lambda family: build(family, root / family)


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint("llama"))


@pytest.fixture(scope="session")
def model(checkpoint):
    """transformers' model of a family, loaded once."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    def load(family: str):
        auto = AutoModelForImageTextToText if family in IMAGE_FAMILIES else AutoModelForCausalLM
        return auto.from_pretrained(checkpoint(family), dtype=torch.float32).eval()

    return lru_cache(load)


@pytest.fixture(scope="session")
def answer(model, prompt):
    """What a family answers to the prompt, asked once: new tokens and margins."""
    return lru_cache(lambda family: greedy(model(family), prompt))


@pytest.fixture(scope="session")
def prompt(tokenizer) -> list[int]:
    return tokenizer(CORPUS.read_text(encoding="utf-8")).input_ids[:PROMPT_TOKENS]


def digests(directory: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.iterdir()}


def last_logits(model, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([prompt]), use_cache=False).logits[0, -1].float()


def has_attention(module: torch.nn.Module) -> bool:
    return hasattr(module, "q_proj")


def has_state(module: torch.nn.Module) -> bool:
    """Every recurrent layer begins with a short convolution."""
    return any(isinstance(child, torch.nn.Conv1d) for child in module.children())


def greedy(model, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """New tokens and, per step, by how many logits the best beat the second."""
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = torch.cat(out.scores).float().topk(2).values
    return out.sequences[0, len(prompt) :].tolist(), best[:, 0] - best[:, 1]


#: One family for each way in which weights are drawn and written.
BUILT_TWICE = ("llama", "gpt_oss", "gemma4", "qwen3_next", "jamba", "mllama", "gemma3_vision")
TEXT_FAMILIES = (*ATTENTION_FAMILIES, *STATE_FAMILIES)


@pytest.mark.parametrize("family", BUILT_TWICE)
def test_building_twice_gives_identical_bytes(family, checkpoint, tmp_path):
    again = build(family, tmp_path / "elsewhere")
    assert digests(again) == digests(checkpoint(family))


def test_another_process_builds_the_same_bytes(checkpoint, tmp_path):
    out = tmp_path / "by-command"
    command = [sys.executable, "-m", "sglang_jenga.tiny", "gemma3", str(out)]
    done = subprocess.run(
        command, env=dict(os.environ, PYTHONHASHSEED="7"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert digests(out) == digests(checkpoint("gemma3"))


@pytest.mark.parametrize("key", SPECS, ids="-".join)
def test_every_spec_declares_enough_positions_and_all_its_layers(key):
    config = SPECS[key].config
    config = config.get("text_config", config)
    assert config["max_position_embeddings"] >= (8192 if key[1] == BENCH else 2048)
    assert len(config.get("layer_types", [])) in (0, config["num_hidden_layers"])


def test_presets_other_than_test_build_too(tmp_path):
    for family, preset in SPECS:
        if preset != "test":
            out = build(family, tmp_path / f"{family}-{preset}", preset=preset)
            config = json.loads((out / "config.json").read_text())
            assert config["num_hidden_layers"] == SPECS[family, preset].config["num_hidden_layers"]


def test_a_finished_directory_is_reused(tmp_path):
    weights = build("llama", tmp_path / "c") / "model.safetensors"
    before = weights.stat()
    build("llama", tmp_path / "c")
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_another_seed_replaces_the_directory_and_changes_the_weights(tmp_path):
    first = digests(build("llama", tmp_path / "c"))
    second = digests(build("llama", tmp_path / "c", seed=1))
    assert first["tokenizer.json"] == second["tokenizer.json"]
    assert first["model.safetensors"] != second["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "no work directory may be left behind"


def test_a_directory_with_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("unsaved")
    with pytest.raises(FileExistsError, match="not a tiny checkpoint"):
        build("llama", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unknown_family_or_preset_is_answered_with_what_exists():
    with pytest.raises(ValueError, match="gemma3, gemma4"):
        find_spec("gemma17")
    with pytest.raises(ValueError, match="test, demo, bench"):
        find_spec("gemma3", "huge")


def test_a_parameter_without_a_rule_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 16}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **small))
    model.model.novelty = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"no rule initialises 'model.novelty'"):
        initialise(model, seed=0, embedding_std=1.0, quiet_token_ids=[0])


class TestTokenizer:
    def test_any_text_survives_a_round_trip(self, tokenizer):
        every_byte_in_utf8 = "".join(map(chr, range(0x800))) + "\u20ac\U0001f6a2 \t\r\n  {}"
        for text in ("The harbour", every_byte_in_utf8, '{"a": [1, 2.5, null]}', " leading"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == text

    def test_size_and_special_tokens_match_the_configuration(self, tokenizer, checkpoint):
        config = json.loads((checkpoint("llama") / "config.json").read_text())
        assert len(tokenizer) == config["vocab_size"] == VOCAB_SIZE
        for name in ("pad", "bos", "eos"):
            assert getattr(tokenizer, f"{name}_token_id") == config[f"{name}_token_id"]
        assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id

    def test_chat_template_renders_a_conversation(self, tokenizer):
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text == (
            "<|bos|><|turn_start|>system\nBe brief.<|turn_end|>\n"
            "<|turn_start|>user\nHi<|turn_end|>\n<|turn_start|>assistant\n"
        )
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids.count(TURN_END_ID) == 2, "turn marks must be single tokens"

    def test_generation_ends_at_the_end_of_a_turn(self, model):
        assert model("llama").generation_config.eos_token_id == [EOS_ID, TURN_END_ID]

    def test_a_json_grammar_can_always_be_finished(self, tokenizer):
        xgrammar = pytest.importorskip("xgrammar", reason="the grammar engine is not installed")
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=VOCAB_SIZE)
        schema = {
            "type": "object",
            "properties": {"name": {"const": "\u00e9t\u00e9"}, "n": {"const": 4096}},
            "required": ["name", "n"],
            "additionalProperties": False,
        }
        compiled = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(schema))
        matcher = xgrammar.GrammarMatcher(compiled)
        mask = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
        ids: list[int] = []
        while not matcher.is_terminated():
            matcher.fill_next_token_bitmask(mask)
            logits = torch.linspace(1.0, 0.0, VOCAB_SIZE)[None]  # a model that prefers low ids
            xgrammar.apply_token_bitmask_inplace(logits, mask)
            ids.append(int(logits.argmax()))
            assert matcher.accept_token(ids[-1])
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        assert json.loads(answer) == {"name": "\u00e9t\u00e9", "n": 4096}


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT_FAMILIES)
class TestOutputs:
    def test_greedy_output_is_varied_and_decided_by_clear_margins(self, family, answer):
        tokens, margins = answer(family)
        assert len(tokens) == NEW_TOKENS, "a stray end token cut the output"
        assert len(set(tokens)) >= NEW_TOKENS // 3
        for period in range(1, 7):
            assert tokens[period:] != tokens[:-period], f"the output repeats every {period} tokens"
        assert margins.median() > 0.2
        assert margins.min() > 1e-3, "float32 rounding (about 1e-4 here) could decide this token"

    def test_output_is_text_without_replacement_characters(self, family, answer, tokenizer):
        text = tokenizer.decode(answer(family)[0])
        assert text.isascii()
        assert text.replace("\n", " ").isprintable()

    @pytest.mark.parametrize("back", [20, 180], ids=["in reach of windows", "far behind them"])
    def test_a_page_of_other_tokens_in_the_prompt_changes_the_output(
        self, family, back, model, prompt
    ):
        other = list(prompt)
        other[-back - 16 : -back] = prompt[:16]
        before = last_logits(model(family), prompt)
        change = (last_logits(model(family), other) - before).std() / before.std()
        assert change > 0.02, f"logits change by only {change:.1%}"


class TestKinds:
    @pytest.mark.parametrize("family", ATTENTION_FAMILIES)
    def test_layers_of_each_kind_decide_the_output(self, family, model, prompt, monkeypatch):
        """Letting one kind attend as the other does changes the logits, so neither is idle."""
        subject = model(family)
        code = sys.modules[type(subject).__module__]
        local = next((m for m in LOCAL_MASKS if hasattr(code, m)), None)
        if family == "llama":
            assert local is None, "the control has one kind of layer"
            return
        before = last_logits(subject, prompt)
        for one, other in ((local, FULL_MASK), (FULL_MASK, local)):
            with monkeypatch.context() as patch:
                patch.setattr(code, one, getattr(code, other))
                change = (last_logits(subject, prompt) - before).std() / before.std()
            assert change > 0.1, f"{one} answered by {other} changes logits by only {change:.1%}"

    @pytest.mark.parametrize("family", STATE_FAMILIES)
    def test_states_and_attention_decide_the_output(self, family, model, prompt):
        """Silencing either kind of layer changes the logits."""
        subject = model(family)
        before = last_logits(subject, prompt)
        for kind in (has_state, has_attention):
            outputs = [
                getattr(module, "o_proj", None) or module.out_proj
                for module in subject.modules()
                if kind(module)
            ]
            # Jamba keeps its period: seven state layers for one with attention.
            least = 1 if family == "jamba" and kind is has_attention else 2
            assert len(outputs) >= least, "several layers of each kind"
            kept = [output.weight.clone() for output in outputs]
            with torch.no_grad():
                for output in outputs:
                    output.weight.zero_()
                change = (last_logits(subject, prompt) - before).std() / before.std()
                for output, weight in zip(outputs, kept, strict=True):
                    output.weight.copy_(weight)
            assert change > 0.1, f"without {kind.__name__} logits change by only {change:.1%}"


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_what_is_in_a_picture_decides_the_output(family, model, checkpoint):
    """By the real processor, from pixels to logits; half of a picture is enough."""
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint(family))
    turn = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
    )
    left, right = Image.new("RGB", (60, 30), "navy"), Image.new("RGB", (60, 30), "navy")
    right.paste("orange", (30, 0, 60, 30))
    seen = []
    for picture in (left, right):
        inputs = processor(images=picture, text=text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            seen.append(model(family)(**inputs).logits[0, -1].float())
    change = (seen[0] - seen[1]).std() / seen[0].std()
    assert change > 0.1, f"logits change by only {change:.1%}"
