# SPDX-License-Identifier: Apache-2.0
"""Do the recorded stock answers agree with transformers' own greedy answers?

    python benchmark/identity/transformers_check.py [--family F ...]

Two SGLang servers that share a mistake would agree; transformers shares no code with
them. Families whose reference is not recorded yet are recorded first. Rows go to
results/transformers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from server import prompts  # noqa: E402
from server.client import Answer, Request  # noqa: E402
from server.compare import largest_difference  # noqa: E402
from server.matrix import Family, prepare, reference_of  # noqa: E402

from sglang_jenga.tiny import FAMILIES  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "transformers.jsonl"
#: Two implementations in float32: norms, rotary tables and experts are computed in another order.
TOLERANCE = 5e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "build" / "identity")
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    rows = {}
    if RESULTS.exists():
        stored = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
        rows = {row["family"]: row for row in stored}
    for name in args.family:
        rows[name] = _compare(prepare(name, args.work_dir))
        print(json.dumps(rows[name]), flush=True)
        lines = [json.dumps(row, sort_keys=True) for _, row in sorted(rows.items())]
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(rows[name]["agrees"] for name in args.family) else 1


def _compare(family: Family) -> dict[str, Any]:
    reference = reference_of(family, "plain", ["uncached", "abort_decode"])
    requests = prompts.MIXED + prompts.TALKATIVE[:2]
    answers = [reference.get(request.key) for request in requests]
    expected = transformers_answers(family.checkpoint, requests)
    equal = [want.tokens == have.tokens for want, have in zip(expected, answers, strict=True)]
    difference = max(
        largest_difference(want.logprobs, have.logprobs)
        for want, have, same in zip(expected, answers, equal, strict=True)
        if same or not any(equal)
    )
    return {
        "family": family.name,
        "agrees": all(equal) and difference <= TOLERANCE,
        "answers": len(equal),
        "equal": sum(equal),
        "max_logprob_difference": difference,
        "tolerance": TOLERANCE,
        "sglang": metadata.version("sglang"),
        "transformers": metadata.version("transformers"),
    }


def transformers_answers(checkpoint: Path, requests: Sequence[Request]) -> list[Answer]:
    """Greedy answers of transformers' own implementation, in float32, one request at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    answers = []
    for request in requests:
        ids = torch.tensor([request.input_ids])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=request.max_new_tokens,
                max_new_tokens=request.max_new_tokens,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = out.sequences[0, ids.shape[1] :].tolist()
        logprobs = [
            float(logits[0].log_softmax(-1)[token])
            for logits, token in zip(out.logits, tokens, strict=True)
        ]
        answers.append(
            Answer(tokens=tuple(tokens), logprobs=tuple(logprobs), text="", finish="length")
        )
    return answers


if __name__ == "__main__":
    sys.exit(main())
