# SPDX-License-Identifier: Apache-2.0
"""Which type SGLang's ``--kv-cache-dtype auto`` takes for a quantised checkpoint.

A checkpoint says how it is quantised in its config.json (``quantization_config``, or
``compression_config``), or in a ``hf_quant_config.json`` beside it. SGLang 0.5.23 reads the file
only where config.json says nothing, picks a class of its own by the method, and asks that class
for ``kv_cache_quant_algo``: FP8 makes K and V FP8, all else leaves the model's type. What follows
repeats those classes' ``from_config``; a test asks both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import shown

QUANT_FILE = "hf_quant_config.json"
_FIELDS = ("quantization_config", "compression_config")
_Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvQuantisation:
    """What a checkpoint says of its K and V.

    algorithm: as SGLang understands it, None: nothing. asked: what is written there, whether
    SGLang follows it or not; where: in which field or file.
    """

    algorithm: str | None = None
    asked: str | None = None
    where: str = ""

    @property
    def note(self) -> str:
        """What to say where SGLang does not do what is written."""
        if self.asked is None or (self.algorithm or "").upper() == self.asked.upper():
            return ""
        return (
            f"{self.where} says {shown(self.asked)} K/V, and SGLang's auto keeps the model's type "
            "there: say --kv-cache-dtype fp8_e4m3 if you want FP8"
        )


def kv_quantisation(
    config: _Settings, beside: _Settings | None, *, seen: bool = True
) -> KvQuantisation:
    """What ``config`` (config.json) and ``beside`` (hf_quant_config.json, if there is one) say.

    ``seen``: whether the model's file keeps it where SGLang looks.

    Raises:
        ConfigError: a field is of the wrong type, named.
    """
    stated, compressed = (_object(config, name, name) for name in _FIELDS)
    where = "quantization_config" if stated is not None else "compression_config"
    if stated is not None:
        method = _method(stated)
        settings = stated
    elif compressed is not None:
        method, settings = _text(compressed, "quant_method"), compressed
    elif beside is not None:
        where = QUANT_FILE
        method, settings = _modelopt_method(_nested(beside)), beside
    else:
        return KvQuantisation()
    algorithm = _algorithm((method or "").lower(), settings, in_file=where == QUANT_FILE)
    asked = _written(_nested(settings))
    if asked is None and beside is not None and where != QUANT_FILE:
        asked, where = _written(_nested(beside)), QUANT_FILE
    return KvQuantisation(algorithm=algorithm if seen else None, asked=asked, where=where)


def _algorithm(method: str, settings: _Settings, *, in_file: bool) -> str | None:
    """``kv_cache_quant_algo`` of the class that SGLang takes for ``method``."""
    scheme = settings.get("kv_cache_scheme")
    written = _text(settings, "kv_cache_quant_algo")
    if method == "compressed-tensors":
        return "FP8" if _is_static_float8(scheme) else None
    if method in ("fp8", "mxfp8"):
        if in_file:  # the class for MXFP8 weights reads no file
            return None
        of_scheme = "FP8" if method == "mxfp8" and _is_float8(scheme) else None
        return written or of_scheme
    if not method.startswith("modelopt"):
        return None
    if settings.get("quant_algo") is None:  # the nested form, as in the file
        return _text(_nested(settings), "kv_cache_quant_algo") if in_file else None
    if isinstance(scheme, dict):
        return "FP8" if _is_float8(scheme) else None
    if method == "modelopt_fp4" and isinstance(scheme, str):
        return "FP8" if scheme.strip().upper() in ("FP8", "FLOAT8") else None
    return written


def _method(stated: _Settings) -> str | None:
    """The method that ``quantization_config`` means: ModelOpt's is known by its algorithm."""
    method = _text(stated, "quant_method")
    if "quant_method" not in stated or method == "modelopt":
        return _modelopt_method(_nested(stated)) or method
    return method


def _modelopt_method(settings: _Settings) -> str | None:
    algorithm = _text(settings, "quant_algo") or ""
    if algorithm == "MIXED_PRECISION":
        layers = _object(settings, "quantized_layers", "quantized_layers") or {}
        algorithms = [
            str(layer.get("quant_algo")).upper()
            for layer in layers.values()
            if isinstance(layer, dict)
        ]
        mixed = any(found in ("NVFP4", "W4A16_NVFP4") for found in algorithms)
        return "modelopt_mixed" if mixed else "w4afp8"
    if "FP4" in algorithm:
        return "modelopt_fp4"
    return {"FP8": "modelopt_fp8", "MXFP8": "mxfp8"}.get(algorithm)


def _written(settings: _Settings) -> str | None:
    """The algorithm that is written there, whoever follows it."""
    written = settings.get("kv_cache_quant_algo")
    if isinstance(written, str) and written.lower() not in ("", "auto", "none"):
        return written
    scheme = settings.get("kv_cache_scheme")
    if isinstance(scheme, str) and scheme:
        return scheme
    return "FP8" if _is_float8(scheme) else None


def _nested(settings: _Settings) -> _Settings:
    inner = settings.get("quantization")
    return inner if isinstance(inner, dict) else settings


def _is_float8(scheme: object) -> bool:
    return (
        isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8
    )


def _is_static_float8(scheme: object) -> bool:
    return (
        isinstance(scheme, dict)
        and _is_float8(scheme)
        and scheme.get("strategy") == "tensor"
        and bool(scheme.get("symmetric", True))
        and not scheme.get("dynamic", False)
    )


def _object(settings: _Settings, name: str, where: str) -> _Settings | None:
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where!r} is {shown(value)}, expected an object")
    return value


def _text(settings: _Settings, name: str) -> str | None:
    value = settings.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name!r} of the quantisation is {shown(value)}, expected a text")
    return value
