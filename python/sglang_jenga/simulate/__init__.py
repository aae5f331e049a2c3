# SPDX-License-Identifier: Apache-2.0
"""Replay a trace of requests against one arena, without a model and without a GPU.

    traces    who asked for how much: files of several formats
    contents  which prompts share text, where the trace says so
    loop      a scheduler of continuous batching, for any engine
    engine    what the loop asks of an engine, and what it hands it
    plain     an engine over the core alone: no torch, no SGLang, no prefix cache
    server    an engine over the classes that a server runs: allocator, admission, radix cache
    timeline  who held the bytes, over time
    report    the result, for people and as JSON

Only ``server`` and ``server_parts`` import torch and SGLang; ``traces`` and ``report`` import
nothing outside the standard library.
"""
