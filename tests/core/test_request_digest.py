# SPDX-License-Identifier: Apache-2.0
"""Whatever a client calls its request, what is kept of the name is short, plain and its own."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from sglang_jenga.core.request_digest import HEALTH_CHECK, digest_of, request_digest

ANY_TEXT = st.text(st.characters(codec=None), max_size=50)


@given(ANY_TEXT)
def test_any_id_becomes_a_short_plain_word(rid):
    digest = request_digest(rid)
    assert len(digest) <= 29 and digest.isascii()
    assert digest.replace("-", "").replace("_", "").isalnum()
    assert digest == request_digest(rid)


@given(st.lists(ANY_TEXT, unique=True, max_size=10))
def test_ids_that_differ_have_digests_that_differ(rids):
    assert len({request_digest(rid) for rid in rids}) == len(rids)


def test_long_ids_are_told_apart_wherever_they_differ():
    long = "x" * 2_000_000
    found = {request_digest(text) for text in (long, "y" + long[1:], long[:-1] + "y", long[:-1])}
    assert len(found) == 4 and all(len(digest) == 16 for digest in found)


def test_health_checks_are_still_known_by_their_first_word():
    assert request_digest("HEALTH_CHECK_1.5").startswith(HEALTH_CHECK)
    assert not request_digest("mine").startswith(HEALTH_CHECK)


def test_a_request_keeps_its_digest_and_never_its_id_in_it():
    request = SimpleNamespace(rid="secret of a client")
    assert digest_of(request) == request_digest("secret of a client") == digest_of(request)
    kept = {name: value for name, value in vars(request).items() if name != "rid"}
    assert "secret" not in str(kept) and len(kept) == 1
