# SPDX-License-Identifier: Apache-2.0
"""Write a tiny checkpoint to a directory: once, completely, reproducibly.

torch and transformers are imported only when something has to be written, so asking for a
checkpoint that exists costs milliseconds.
"""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from sglang_jenga.tiny import tokenizer
from sglang_jenga.tiny.specs import TEST, TinySpec, find_spec

MANIFEST = "tiny.json"
"""Written last, so a directory with it is complete; its fingerprint says what it was made from."""


def build(family: str, out_dir: str | Path, *, seed: int = 0, preset: str = TEST) -> Path:
    """Build the checkpoint ``family``/``preset`` in ``out_dir`` and return ``out_dir``.

    Weights are float32. A directory built from the same specification, seed, library versions and
    source is left alone; one built from others is replaced. Concurrent builders of one directory
    are safe: the result appears by a rename.

    Raises ``ValueError`` for an unknown family or preset and ``FileExistsError`` if ``out_dir``
    holds something that this function did not write.
    """
    out = Path(out_dir)
    spec = find_spec(family, preset)
    manifest = {
        "family": family,
        "preset": preset,
        "seed": seed,
        "fingerprint": _fingerprint(spec, seed),
    }
    if _read_manifest(out) == manifest:
        return out
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise FileExistsError(
            f"{out} holds files that are not a tiny checkpoint ({MANIFEST} is missing) and will "
            "not be overwritten; choose another directory or empty this one"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = work / "new"
        new.mkdir()
        _write(spec, seed, new)
        _write_json(new / MANIFEST, manifest)
        _publish(new, out, work / "old", manifest)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _fingerprint(spec: TinySpec, seed: int) -> str:
    """Hash of everything the files depend on; this package's own source included, so that a changed
    initialisation is never served from an old directory."""
    digest = hashlib.sha256()
    libraries = {name: metadata.version(name) for name in ("tokenizers", "torch", "transformers")}
    facts = {"spec": asdict(spec), "seed": seed, "libraries": libraries}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.iterdir()):
        if source.suffix in (".py", ".txt"):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _read_manifest(directory: Path) -> object:
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _publish(new: Path, out: Path, old: Path, manifest: object) -> None:
    """Make ``new`` appear as ``out``; another builder's equal result wins over ours."""
    if _read_manifest(out) == manifest:
        return
    with contextlib.suppress(FileNotFoundError):
        os.replace(out, old)
    try:
        os.replace(new, out)
    except OSError:
        if _read_manifest(out) != manifest:
            raise


def _write(spec: TinySpec, seed: int, directory: Path) -> None:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        GenerationConfig,
    )

    from sglang_jenga.tiny.weights import initialise

    # A copy: configuration classes fill in and rewrite the dictionaries they are given.
    config = AutoConfig.for_model(spec.model_type, **copy.deepcopy(dict(spec.config)))
    auto = AutoModelForImageTextToText if spec.image_processor else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    initialise(
        model,
        seed=seed,
        embedding_std=spec.embedding_std,
        quiet_token_ids=tokenizer.quiet_token_ids(),
    )
    # Greedy unless a request says otherwise; a chat turn ends with its own token.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.BOS_ID,
        eos_token_id=[tokenizer.EOS_ID, tokenizer.TURN_END_ID],
        pad_token_id=tokenizer.PAD_ID,
    )
    with _silent_progress():
        model.save_pretrained(directory)
    if spec.renamed_weights is not None:
        _rename_weights(directory / "model.safetensors", *spec.renamed_weights)
    _adapt_config(spec, directory / "config.json")
    if spec.image_processor:
        _write_json(directory / "preprocessor_config.json", spec.image_processor)
    if spec.image_processor_config:
        _write_json(directory / "processor_config.json", spec.image_processor_config)
    tokenizer.save(
        directory,
        max_length_tokens=config.get_text_config().max_position_embeddings,
        image_tokens=spec.image_tokens,
    )


def _rename_weights(path: Path, written: str, published: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = {
        published + name.removeprefix(written) if name.startswith(written) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


@contextlib.contextmanager
def _silent_progress() -> Iterator[None]:
    """No progress bar for writing one small file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _adapt_config(spec: TinySpec, path: Path) -> None:
    """Rewrite what SGLang reads otherwise than transformers writes it; transformers reads both
    forms."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if spec.architecture is not None:
        settings["architectures"] = [spec.architecture]
    if spec.legacy_rope:
        thetas = {kind["rope_theta"] for kind in settings.pop("rope_parameters").values()}
        if len(thetas) != 1:
            raise ValueError(
                f"{spec.family} has RoPE bases {sorted(thetas)}, and one rope_theta cannot say "
                "that; drop legacy_rope from its spec"
            )
        settings["rope_theta"] = thetas.pop()
    for key, value in spec.rewritten.items():
        settings.pop(key, None)
        if value is not None:
            settings[key] = value
    _write_json(path, settings)
