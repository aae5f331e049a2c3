# SPDX-License-Identifier: Apache-2.0
"""JSON of others, in bounded memory: so many bytes, so many values, and nothing that is no JSON."""

from __future__ import annotations

import json
from typing import Any, NoReturn

#: Bytes of one document: /server_info of 64 schedulers with the largest maps is 13 MB.
MOST_BYTES = 16 * 2**20
#: Values in one document. An empty list takes 2 bytes of text and 64 of memory.
MOST_VALUES = 1_000_000


class NotJson(ValueError):
    """The text is no JSON, or more of it than is read; the message says which, in words."""


def parsed(text: bytes) -> Any:
    """The document.

    Raises:
        NotJson: it is none, or too much. Names nothing of the text but a position.
    """
    if len(text) > MOST_BYTES:
        raise NotJson(f"more than {MOST_BYTES:,} bytes")
    if values_in(text) > MOST_VALUES:
        raise NotJson(f"more than {MOST_VALUES:,} values")
    try:
        return json.loads(text, parse_constant=_refuse)
    except NotJson:
        raise
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start:,}") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at character {error.pos:,}") from None
    except ValueError:  # a whole number of thousands of digits
        raise NotJson("a number with too many digits") from None


def values_in(text: bytes) -> int:
    """At most so many values are in a document; what makes them is counted, not read."""
    return sum(map(text.count, (b",", b"[", b"{")))


def _refuse(name: str) -> NoReturn:
    raise NotJson(f"{name} is not a number of JSON")
