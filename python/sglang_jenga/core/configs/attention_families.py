# SPDX-License-Identifier: Apache-2.0
"""Layers of models that are attention alone, from their configurations.

Each function repeats what SGLang's model file passes to its attention layers; the name of the file
is said where the rule is not plain. A window here counts the tokens before the current one, as
SGLang does, so a ``sliding_window`` of 1,024 is 1,023 (Cohere 2 is the exception, in SGLang too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.model_kinds import AttentionLayer, ModelKinds, group_layers
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, Window
from sglang_jenga.core.printable import shown

LayersOf = Callable[[Fields, int], ModelKinds]
LOCAL_OR_FULL = {"sliding_attention": "local", "full_attention": "full"}


def window(fields: Fields, *, counts_itself: bool = True) -> Window:
    """The sliding window; ``counts_itself``: the field includes the current token."""
    tokens = fields.tokens("sliding_window", least=2 if counts_itself else 1)
    return Window(window_tokens=tokens - 1 if counts_itself else tokens)


def attention(
    policies: Sequence[Policy | None], *, num_kv_heads: int, head_dim: int
) -> tuple[AttentionLayer, ...]:
    """One layer per policy, all of one shape; None: no attention in that layer."""
    return tuple(
        AttentionLayer(
            layer_id=layer_id,
            num_kv_heads=num_kv_heads,
            k_head_dim=head_dim,
            v_head_dim=head_dim,
            policy=policy,
        )
        for layer_id, policy in enumerate(policies)
        if policy is not None
    )


def uniform(fields: Fields, tp: int) -> ModelKinds:
    """Every layer attends to everything."""
    layers = fields.layers()
    return group_layers(
        attention([Full()] * layers, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def uniform_divided(fields: Fields, tp: int) -> ModelKinds:
    """As :func:`uniform`; the model file reads no ``head_dim``."""
    return group_layers(_divided(fields, tp, [Full()] * fields.layers()))


def mistral(fields: Fields, tp: int) -> ModelKinds:
    """Mistral and Ministral: the windows that this package gives them (models/ministral.py)."""
    layers = fields.layers()
    if fields.stated("sliding_window") is None:
        return uniform(fields, tp)
    local = window(fields)
    policies: list[Policy] = [local] * layers
    if fields.optional("layer_types") is not None:
        policies = _local_or_full(fields, local)
    return group_layers(
        attention(policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def gemma2(fields: Fields, tp: int) -> ModelKinds:
    """Even layers slide, whatever ``layer_types`` says (gemma2.py)."""
    local = window(fields)
    policies = [Full() if i % 2 else local for i in range(fields.layers())]
    return group_layers(
        attention(policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def windows(fields: Fields, tp: int) -> ModelKinds:
    """Gemma 3, gpt-oss: ``layer_types``, or every n-th layer full where only that is stated."""
    return group_layers(
        attention(
            _local_or_full(fields, window(fields)),
            num_kv_heads=fields.kv_heads(tp),
            head_dim=fields.head_dim(),
        )
    )


def olmo3(fields: Fields, tp: int) -> ModelKinds:
    """OLMo 3 (olmo2.py)."""
    return group_layers(_divided(fields, tp, _local_or_full(fields, window(fields))))


def cohere2(fields: Fields, tp: int) -> ModelKinds:
    """Command R7B (commandr.py), which passes ``sliding_window`` on as it is."""
    local = window(fields, counts_itself=False)
    return group_layers(_divided(fields, tp, _local_or_full(fields, local)))


def exaone4(fields: Fields, tp: int) -> ModelKinds:
    """EXAONE 4 (exaone4.py): windows by ``sliding_window_pattern``, a text such as LLLG."""
    layers = fields.layers()
    pattern = fields.stated("sliding_window_pattern")
    policies: list[Policy] = [Full()] * layers
    if pattern is not None and not isinstance(pattern, str):
        raise ConfigError(
            f"{fields.architecture}: 'sliding_window_pattern' is {shown(pattern)}, and SGLang "
            "reads a text such as 'LLLG' (L slides, G is full) or null: write it so"
        )
    if pattern and fields.stated("sliding_window") is not None:
        local = window(fields)
        policies = [local if (i + 1) % len(pattern) else Full() for i in range(layers)]
    return group_layers(
        attention(policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def llama4(fields: Fields, tp: int) -> ModelKinds:
    """Every fourth layer is full, the others read their chunk (llama4.py)."""
    local = Chunked(chunk_tokens=fields.tokens("attention_chunk_size"))
    policies = [local if (i + 1) % 4 else Full() for i in range(fields.layers())]
    return group_layers(
        attention(policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def gemma4(fields: Fields, tp: int) -> ModelKinds:
    """Full layers have heads of their own; the last ``num_kv_shared_layers`` reuse earlier K/V.

    Published checkpoints state the window's heads and the full layers' apart (``global_head_dim``,
    ``num_global_key_value_heads``, the latter where K and V are one projection); a text model alone
    states the full layers' heads and the window's apart (``swa_*``), which is what SGLang reads.
    """
    layers = fields.layers()
    if fields.optional("swa_head_dim") is not None:
        full = (fields.kv_heads(tp), fields.integer("head_dim"))
        local = (fields.kv_heads(tp, "swa_num_key_value_heads"), fields.integer("swa_head_dim"))
    elif fields.architecture == "Gemma4ForCausalLM":
        raise ConfigError(
            "Gemma4ForCausalLM: the configuration has no 'swa_head_dim', and SGLang reads the "
            "heads of window layers from it (swa_head_dim, swa_v_head_dim, "
            "swa_num_key_value_heads) where the model is text alone: add them"
        )
    else:
        own = fields.flag("attention_k_eq_v") is not False
        apart = own and fields.optional("num_global_key_value_heads") is not None
        name = "num_global_key_value_heads" if apart else "num_key_value_heads"
        full = (fields.kv_heads(tp, name), fields.integer("global_head_dim"))
        local = (fields.kv_heads(tp), fields.integer("head_dim"))
    shared = 0
    if fields.optional("num_kv_shared_layers") is not None:
        shared = fields.integer("num_kv_shared_layers", least=0)
    if shared >= layers:
        raise ConfigError(
            f"{fields.architecture}: 'num_kv_shared_layers' {shared} leaves none of {layers} "
            "layers with K/V of its own"
        )
    policies = _local_or_full(fields, window(fields))[: layers - shared]
    by_kind = {
        Full: attention(policies, num_kv_heads=full[0], head_dim=full[1]),
        Window: attention(policies, num_kv_heads=local[0], head_dim=local[1]),
    }
    return group_layers(by_kind[type(policy)][i] for i, policy in enumerate(policies))


def mllama(fields: Fields, tp: int) -> ModelKinds:
    """Llama 3.2 Vision: some layers attend to images, the others to text."""
    layers = fields.layers()
    crossing = set(fields.numbers_of_layers("cross_attention_layers", layers))
    if len(crossing) == layers:
        raise fields.odd("cross_attention_layers", f"some of the {layers} layers, not all")
    heads = fields.integer("num_key_value_heads")
    if tp > heads:
        raise ConfigError(
            f"{fields.architecture}: num_key_value_heads {heads} is below --tp {tp}, and its cross "
            "layers copy no heads: use fewer ranks"
        )
    policies = [Cross() if i in crossing else Full() for i in range(layers)]
    return group_layers(
        attention(policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim())
    )


def _divided(fields: Fields, tp: int, policies: Sequence[Policy]) -> tuple[AttentionLayer, ...]:
    """Layers of a model whose file computes the head size and reads no ``head_dim``."""
    return attention(
        policies, num_kv_heads=fields.kv_heads(tp), head_dim=fields.head_dim(stated=False)
    )


def _local_or_full(fields: Fields, local: Policy) -> list[Policy]:
    """By ``layer_types``; where it is left out, the last layer of every ``sliding_window_pattern``
    is full, as the architecture's configuration class fills it in."""
    layers = fields.layers()
    if fields.optional("layer_types") is None:
        for name in ("_sliding_window_pattern", "sliding_window_pattern"):
            if fields.optional(name) is not None:
                period = fields.integer(name)
                return [local if (i + 1) % period else Full() for i in range(layers)]
    kinds = fields.kinds_of_layers("layer_types", layers, LOCAL_OR_FULL)
    return [local if kind == "local" else Full() for kind in kinds]
