# SPDX-License-Identifier: Apache-2.0
"""What the id of a request becomes before it is kept, shown or logged: a short digest.

A client chooses the id: it may be megabytes long, hold control characters, or be nobody else's
business. Whoever knows an id finds its request by the digest, and the digest does not tell the id.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Protocol

#: Hexadecimal digits of a digest: that two of a million requests share one has a chance of 3e-8.
_DIGITS = 16
#: How SGLang begins the ids of its own requests; the word is kept, so that they can be told apart.
HEALTH_CHECK = "HEALTH_CHECK"
#: Attribute of a request that holds its digest once somebody asked.
_KEPT = "jenga_digest"


class _HasId(Protocol):
    @property
    def rid(self) -> str: ...


def request_digest(rid: str) -> str:
    """The digest of any id, whatever it is made of: at most 29 plain characters."""
    digest = sha256(rid.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{HEALTH_CHECK}-{digest}" if rid.startswith(HEALTH_CHECK) else digest


def digest_of(request: _HasId) -> str:
    """The digest of ``request.rid``, kept on the request: a long id is read once."""
    found: str | None = getattr(request, _KEPT, None)
    if found is None:
        found = request_digest(str(request.rid))
        setattr(request, _KEPT, found)
    return found
