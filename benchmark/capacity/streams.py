# SPDX-License-Identifier: Apache-2.0
"""Streams beside the judge's own, for every driver of the judge.

    streams.py DIR/drive_vllm.py --model gpt-oss-20b --stream unique:600:300:1 -n 800

``unique:PROMPT:OUTPUT:SEED``: requests that share nothing, so that no cache can be hit. Lengths are
uniform between a quarter of the mean and as far above it; all requests are there at the beginning.
``drive_jenga.py`` knows these streams by itself.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

#: Tokens of one block id of the judge's traces.
_BLOCK_TOKENS = 512


def unique(common: Any, name: str, model: Any, n: int) -> tuple[list[Any], dict[str, Any]]:
    """``n`` requests of the stream ``name`` with contents of their own, and what they are like."""
    prompt, output, seed = (int(field) for field in name.split(":")[1:])
    rng = np.random.default_rng(seed)
    prompts, outputs = (
        rng.integers(mean // 4, 2 * mean - mean // 4, n, endpoint=True) for mean in (prompt, output)
    )
    requests, next_id = [], 1
    for index, (tokens, answer) in enumerate(zip(prompts, outputs, strict=True)):
        blocks = -(-int(tokens) // _BLOCK_TOKENS)
        ids = list(range(next_id, next_id + blocks))
        next_id += blocks
        request = common.SReq(index, int(tokens), int(answer), ids, _BLOCK_TOKENS, model.img_tokens)
        requests.append(request)
    common.synth_tokens(requests, cont=False)
    about = {"stream": name, "n": n, "infinite_cache_hit_ratio": 0.0}
    return requests, {
        **about,
        "prompt_mean": float(prompts.mean()),
        "out_mean": float(outputs.mean()),
    }


def add_streams(common: Any) -> None:
    """Let the judge's ``common`` load these streams too."""
    judges = common.load_stream

    def load(name: str, model: Any, n: int, skip: int = 0, speedup: float = 0) -> Any:
        if name.startswith("unique:"):
            return unique(common, name, model, n)
        return judges(name, model, n, skip, speedup)

    common.load_stream = load


if __name__ == "__main__":
    driver = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(driver.parent))
    import common

    add_streams(common)
    del sys.argv[0]
    runpy.run_path(str(driver), run_name="__main__")
