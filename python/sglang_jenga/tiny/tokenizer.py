# SPDX-License-Identifier: Apache-2.0
"""A real byte-level BPE tokenizer, trained in milliseconds on the embedded text.

Byte-level (the GPT-2 alphabet) because then every byte string has an encoding: grammar-constrained
decoding can always make progress and detokenisation is lossless. The files are written by hand
rather than through ``PreTrainedTokenizerFast.save_pretrained``: that call's output depends on the
transformers version, and ``PreTrainedTokenizerFast`` is a class name that both transformers 4 and 5
load.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = Path(__file__).with_name("corpus.txt")
"""Written for this project (Apache-2.0), so that nothing has to be downloaded. It mixes prose,
dialogue, numbers, JSON and code because those are what tests send: merges learned on prose alone
would cut JSON and digits into single bytes and make constrained decoding needlessly slow."""

VOCAB_SIZE = 1024
"""Tokens of every tiny checkpoint: 256 bytes, the special tokens, and merges. Fixed, so that the
embedding never has rows without a token."""

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
TURN_START, TURN_END = "<|turn_start|>", "<|turn_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, TURN_START, TURN_END)
PAD_ID, BOS_ID, EOS_ID, TURN_START_ID, TURN_END_ID = range(len(SPECIAL_TOKENS))

FIRST_IMAGE_ID = VOCAB_SIZE
"""Tokens about images come after the vocabulary: no answer has them."""

_CONTENT = "{{ message['content'] | trim }}"
_CONTENT_WITH_IMAGES = (
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% else %}IMAGE{% endif %}"
    "{% endfor %}{% endif %}"
)
_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|turn_start|>{{ message['role'] }}\nCONTENT<|turn_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn_start|>assistant\n{% endif %}"
)


@lru_cache(maxsize=1)
def train() -> Tokenizer:
    """Train the tokenizer (about 15 ms, once per process).

    Raises ``RuntimeError`` if the embedded text is too short to learn ``VOCAB_SIZE`` tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS.read_text(encoding="utf-8")], trainer)
    if (learned := tokenizer.get_vocab_size()) != VOCAB_SIZE:
        raise RuntimeError(
            f"the tiny tokenizer learned {learned} tokens, not {VOCAB_SIZE}, because {CORPUS} has "
            "too few distinct words; lengthen it"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def quiet_token_ids() -> list[int]:
    """Ids that a tiny model must not generate on its own: special tokens, and tokens whose text is
    not printable ASCII (single bytes of a UTF-8 sequence, control characters).

    Generating a stray end token would cut outputs at random places, and half a UTF-8 sequence
    decodes to U+FFFD, which would let two different outputs compare equal as text.
    """
    tokenizer = train()
    quiet = list(range(len(SPECIAL_TOKENS)))
    for token_id in range(len(SPECIAL_TOKENS), VOCAB_SIZE):
        text = tokenizer.decode([token_id])
        if not all(c == "\n" or (c.isascii() and c.isprintable()) for c in text):
            quiet.append(token_id)
    return quiet


def save(
    directory: Path, *, max_length_tokens: int, image_tokens: Mapping[str, str] | None = None
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (with the chat template).

    ``image_tokens``: tokens for images by their role, appended to the vocabulary in this order.
    """
    tokenizer = train()
    template = _CHAT_TEMPLATE.replace("CONTENT", _CONTENT)
    if image_tokens:
        tokens = list(image_tokens.values())
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens(tokens)
        content = _CONTENT_WITH_IMAGES.replace("IMAGE", tokens[0])
        template = _CHAT_TEMPLATE.replace("CONTENT", content)
        # Where transformers' processors look for it.
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length_tokens,
        "chat_template": template,
        **({"extra_special_tokens": dict(image_tokens)} if image_tokens else {}),
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
