# SPDX-License-Identifier: Apache-2.0
"""Making SGLang serve this package's model classes."""

import os
import sys

PACKAGE = __name__.rpartition(".")[0]
_VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"
_REGISTRY = "sglang.srt.models.registry"


def announce_models() -> None:
    """Let processes that are started from now on find this package's model classes.

    SGLang looks a model's class up before it loads the model, which is when
    :func:`register_models` runs. A package that the user named is left alone.
    """
    os.environ[_VARIABLE] = os.environ.get(_VARIABLE) or PACKAGE


def register_models(*, override: bool) -> None:
    """Let SGLang resolve architectures to this package's classes, in this process and in its
    children.

    With ``override``, architectures that SGLang also has (``MistralForCausalLM``) resolve to ours;
    without, only those that it lacks (``MinistralForCausalLM``). A class that came from somewhere
    else, such as the user's own external model package, is never replaced. May be called
    repeatedly.

    Importing SGLang's registry imports every model it has, which takes seconds and which the
    launching process never needs. So where the registry is not imported yet, its own mechanism is
    used: it reads ``SGLANG_EXTERNAL_MODEL_PACKAGE`` when imported. (Setting that variable by hand
    does the same without any plugin: a stock server with these models.)
    """
    unset = os.environ.get(_VARIABLE, "") in ("", PACKAGE)
    if override and unset and _REGISTRY not in sys.modules:
        os.environ[_VARIABLE] = PACKAGE
        return
    from sglang.srt.models.registry import ModelRegistry, import_model_classes

    for architecture, model_class in import_model_classes(PACKAGE, strict=True).items():
        lacking = not ModelRegistry.is_arch_supported(architecture)
        known = ModelRegistry.models.get(architecture)
        if lacking or (override and known.__module__.startswith("sglang.srt.models.")):
            ModelRegistry.models[architecture] = model_class
