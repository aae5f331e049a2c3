# SPDX-License-Identifier: Apache-2.0
"""Random weights under which a tiny model behaves enough like a trained one to test with.

A freshly initialised transformer is a bad test subject: its attention is nearly uniform, its
residual stream is nearly the last token's embedding, and its greedy output is one token for ever,
whatever the KV cache holds. A wrong page would go unnoticed. Five properties are set instead, each
by one number below:

* Attention is sharp. Scores (before softmax) have standard deviation ``SCORE_STD``, so a few of
  hundreds of keys, near or far, take most of the weight. Where a model normalises Q and K the
  number goes into the norm weights, elsewhere into the projections.
* Attention matters. A sharp average of values is smaller than one value; ``ATTENTION_GAIN`` in the
  output projection makes it as large as the residual stream it joins. Every layer of every kind
  counts.
* States matter. ``STATE_GAIN`` does the same for layers with a recurrent state; how long they
  remember is set in ``state_weights``.
* The last token does not win. With tied embeddings the stream's own token would score highest for
  ever; random signs on the final norm decorrelate reading from writing. (An untied head is
  independent anyway.)
* Logits are spread. ``LOGIT_STD`` makes the typical top-1 margin half a logit: thousands of times
  what two float32 implementations of one model differ by (1e-4), and well inside Gemma's soft cap.
  Rows of special and unprintable tokens are shrunk, so that they are never the answer unless a
  grammar demands them.

Each tensor has its own generator, seeded by the seed and the tensor's name: adding a layer changes
no other.
"""

import hashlib
import math

import torch
from torch import nn

from sglang_jenga.tiny import jamba_spec
from sglang_jenga.tiny.state_weights import draw_state_parameter
from sglang_jenga.tiny.tokenizer import VOCAB_SIZE
from sglang_jenga.tiny.vision_weights import draw_vision_parameter

SCORE_STD = 2.2
ATTENTION_GAIN = 2.0
MLP_GAIN = 2.0
STATE_GAIN = 1.5
LOGIT_STD = 3.0
NORM_JITTER = 0.1
SINK_MEAN = 6.0
"""Near the log-sum-exp of a window's scores: a sink then takes a share that no test can
overlook."""
QUIET_SCALE = 0.05

_PRE_NORM_WEIGHT_OFFSET = {"gemma2": 1.0, "gemma3_text": 1.0, "qwen3_next": 1.0}
"""Families whose norms multiply by ``1 + weight``, except for the norm inside a state layer."""

_QUERY_KEY_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
_UNIT_GAIN = (
    "v_proj",
    "gate_proj",
    "up_proj",
    "router",
    "gate",
    "shared_expert_gate",
    "per_layer_model_projection",
    "per_layer_input_gate",
    "per_layer_projection",
    "input_linear",
    "in_proj",
    "in_proj_qkvz",
    "in_proj_ba",
    "w1",
    "w3",
    "multi_modal_projector",
)


def initialise(
    model: nn.Module, *, seed: int, embedding_std: float, quiet_token_ids: list[int]
) -> None:
    """Overwrite every parameter of a transformers causal language model, in place.

    Raises ``ValueError`` for a parameter that no rule covers: a new architecture must be thought
    about, not filled with whatever its constructor left there.
    """
    plan = _Plan(model, embedding_std)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(plan.draw(name, tensor, _generator(seed, name)))
        for name, tensor in model.named_buffers():
            if name.endswith("layer_scalar"):  # Gemma 4; part of the checkpoint although a buffer
                tensor.uniform_(0.8, 1.2, generator=_generator(seed, name))
        output = model.get_output_embeddings().weight
        output[torch.tensor(quiet_token_ids)] *= QUIET_SCALE
        output[VOCAB_SIZE:] *= QUIET_SCALE  # tokens about images


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class _Plan:
    """Mean, scale and shape rules for one model's parameters, by the last parts of their names."""

    def __init__(self, model: nn.Module, embedding_std: float) -> None:
        config = model.config.get_text_config()
        self._hidden = config.hidden_size
        self._per_layer_width = getattr(config, "hidden_size_per_layer_input", 0)
        self._embedding_std = embedding_std
        self._residual = getattr(config, "residual_multiplier", 1.0)
        self._norm_offset = _PRE_NORM_WEIGHT_OFFSET.get(config.model_type, 0.0)
        self._attention = {n: m for n, m in model.named_modules() if hasattr(m, "q_proj")}
        self._is_jamba = config.model_type == "jamba"
        tied = config.tie_word_embeddings
        # With a tied head, logits = final norm x embeddings, so the norm carries the scale and the
        # signs.
        self._tied = tied
        logit_scale = (
            getattr(config, "logit_scale", 1.0)
            * getattr(config, "lm_head_multiplier", 1.0)
            / getattr(config, "logits_scaling", 1.0)
        )
        head_std = LOGIT_STD / (math.sqrt(self._hidden) * logit_scale)
        self._head_std = embedding_std if tied else head_std
        self._final_norm = (
            LOGIT_STD / (embedding_std * math.sqrt(self._hidden) * logit_scale) if tied else 1.0
        )

    def draw(self, name: str, like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """A new value for the parameter ``name``, float32, of the shape of ``like``."""
        noise = torch.randn(like.shape, generator=rng)
        if self._is_jamba and ".mamba." in name:
            return jamba_spec.draw(name, noise)
        if ".vision_model." in name or ".vision_tower." in name:
            return draw_vision_parameter(name, noise, score_std=SCORE_STD, norm_jitter=NORM_JITTER)
        owner, _, leaf = name.rpartition(".")
        if leaf == "mm_input_projection_weight":  # [in, out]
            return noise * like.shape[0] ** -0.5
        if leaf.startswith("cross_attn_"):  # opens cross attention, which starts closed
            return torch.ones_like(noise)
        module = owner.rpartition(".")[2]
        state = draw_state_parameter(name, noise, rng)
        if state is not None:
            return state
        if module.endswith(("norm", "layernorm", "norm_1", "norm_2", "norm_f")):
            return self._norm(owner, module, noise, rng)
        if leaf == "sinks":
            # SGLang keeps sinks in bfloat16: round here, so that nothing is lost there.
            return (SINK_MEAN + noise).bfloat16().float()
        if leaf.endswith("bias"):
            return NORM_JITTER * noise
        if module in ("embed_tokens", "embeddings"):
            return self._embedding_std * noise
        if module == "embed_tokens_per_layer":  # scaled by the square root of its width when read
            return noise * self._per_layer_width**-0.5
        if module == "lm_head":
            return self._head_std * noise
        if module == "experts":  # [experts, in, out] or [experts, out, in]
            width = like[0].numel() // self._hidden
            inputs = width if leaf == "down_proj" else self._hidden
            return self._gain(leaf) * noise * inputs**-0.5
        if like.dim() == 2:  # [out, in]
            return self._gain(module, owner) * noise * like.shape[1] ** -0.5
        raise ValueError(f"no rule initialises {name!r} of shape {tuple(like.shape)}; add one")

    def _norm(
        self, owner: str, module: str, noise: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        scale = 1.0 + NORM_JITTER * noise
        if owner.endswith("linear_attn.norm"):
            return scale
        if module in _QUERY_KEY_NORMS:
            scale *= self._query_key_scale(owner.rpartition(".")[0])
        elif module == "post_per_layer_input_norm":
            scale *= 0.5  # a token-only input: keep it from outweighing what attention brings
        elif owner.removeprefix("model.language_").count(".") == 1:  # model.norm
            scale *= self._final_norm
            if self._tied:
                scale *= torch.randint(0, 2, noise.shape, generator=rng) * 2 - 1
        return scale - self._norm_offset

    def _query_key_scale(self, attention: str) -> float:
        """How large Q and K must each be for scores of standard deviation ``SCORE_STD``."""
        module = self._attention[attention]
        scaling = module.scaling * getattr(module, "key_multiplier", 1.0)
        return math.sqrt(SCORE_STD / (scaling * math.sqrt(module.head_dim)))

    def _gain(self, projection: str, owner: str = "") -> float:
        if projection in ("q_proj", "k_proj"):
            attention = owner.rpartition(".")[0]
            normalised = any(
                hasattr(self._attention[attention], norm)
                for norm in _QUERY_KEY_NORMS
                if norm[0] == projection[0]
            )
            return 1.0 if normalised else self._query_key_scale(attention)
        if projection == "o_proj":
            return ATTENTION_GAIN / self._residual
        if projection == "out_proj":
            attends = owner.rpartition(".")[0] in self._attention
            return (ATTENTION_GAIN if attends else STATE_GAIN) / self._residual
        if projection in ("down_proj", "output_linear", "w2"):
            return MLP_GAIN / self._residual
        if projection in (*_UNIT_GAIN, "gate_up_proj"):
            return 1.0
        raise ValueError(f"no gain is known for the projection {projection!r} of {owner!r}; add it")
