# SPDX-License-Identifier: Apache-2.0
"""Element types by the names that configurations and SGLang's flags use for them."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtype:
    """An element type. itemsize: bytes of one element (the name is torch's)."""

    name: str
    itemsize: int


FLOAT32 = Dtype(name="float32", itemsize=4)
BFLOAT16 = Dtype(name="bfloat16", itemsize=2)
FLOAT16 = Dtype(name="float16", itemsize=2)
MODEL_DTYPES = {
    "float32": FLOAT32,
    "float": FLOAT32,
    "bfloat16": BFLOAT16,
    "float16": FLOAT16,
    "half": FLOAT16,
}
#: Values of ``--kv-cache-dtype`` beside ``auto`` that a jenga server takes.
KV_DTYPES = {
    "bf16": BFLOAT16,
    "bfloat16": BFLOAT16,
    "fp8_e4m3": Dtype(name="float8_e4m3fn", itemsize=1),
    "fp8_e5m2": Dtype(name="float8_e5m2", itemsize=1),
}
#: Values of ``--mamba-ssm-dtype``.
STATE_DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


def stated_dtype(fields: Fields) -> Dtype | None:
    """The type that the checkpoint says its weights have, None: it does not say."""
    for name in ("dtype", "torch_dtype"):
        stated = fields.text(name)
        if stated:
            return _known(stated, MODEL_DTYPES, f"{fields.architecture}: {name!r}")
    return None


def model_dtype(fields: Fields, asked: str = "auto") -> Dtype:
    """What SGLang computes a model in: ``--dtype``, or the configuration's own type.

    With ``auto`` a float32 checkpoint is computed in bfloat16 (Gemma) or float16 (others), as
    SGLang does it.
    """
    if asked != "auto":
        return _known(asked, MODEL_DTYPES, "--dtype")
    own = stated_dtype(fields) or FLOAT32
    if own is not FLOAT32:
        return own
    return BFLOAT16 if (fields.text("model_type") or "").startswith("gemma") else FLOAT16


def kv_dtype(computed_in: Dtype, asked: str = "auto", *, quantised_to: str | None = None) -> Dtype:
    """What K and V are stored in: ``--kv-cache-dtype``, or what SGLang's ``auto`` makes of the
    checkpoint: FP8 where it is ``quantised_to`` that, else the type the model is computed in."""
    if asked != "auto":
        return _known(asked, KV_DTYPES, "--kv-cache-dtype")
    return KV_DTYPES["fp8_e4m3"] if (quantised_to or "").upper() == "FP8" else computed_in


def state_dtype(fields: Fields, *, field_counts: bool = True) -> Dtype:
    """What recurrent states are stored in: ``--mamba-ssm-dtype``, else the configuration's
    ``mamba_ssm_dtype`` where SGLang reads it (``field_counts``), else float32."""
    stated = fields.text("mamba_ssm_dtype") if field_counts else None
    chosen = fields.mamba_ssm_dtype or stated or "float32"
    return _known(chosen, STATE_DTYPES, "mamba_ssm_dtype")


def conv_dtype(fields: Fields, usual: Dtype = BFLOAT16) -> Dtype:
    """What convolution states are stored in: ``SGLANG_MAMBA_CONV_DTYPE``, else ``usual``."""
    asked = fields.mamba_conv_dtype
    return usual if asked is None else _known(asked, STATE_DTYPES, "mamba_conv_dtype")


def _known(name: str, table: dict[str, Dtype], where: str) -> Dtype:
    found = table.get(name.removeprefix("torch.").lower())
    if found is None:
        raise ConfigError(f"{where} {shown(name)} is unknown: one of {', '.join(table)}")
    return found
