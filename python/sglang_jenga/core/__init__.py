# SPDX-License-Identifier: Apache-2.0
"""The pure heart of Jenga: integers and frozen dataclasses, no torch and no SGLang.

Words, used everywhere in the code:

- kind: a set of layers with the same policy and the same bytes per slot.
- policy: what a kind needs of the past: which lengths are hits, which slots they need.
- slot: what a kernel indexes for a kind. One token's K and V in all the kind's layers, one
  request's recurrent state in all of them, or one image token's embedding.
- small page: consecutive slots that a kind allocates together, page_tokens of them for attention
  (SGLang's own "page"), one for states and vision embeddings.
- large page: a contiguous range that kinds exchange, a whole number of small pages of every kind.
- LCM: the least common multiple of the kinds' small pages, the large page when no slot is padded.
- arena: the flat buffer, num_large_pages * large_page_bytes. Large page 0 is the sink: slot 0 of
  every kind lives there and takes the writes of padded batch rows.
- held / cached / free: pinned by a running request / owned by the prefix tree and evictable /
  neither.
- needed bytes: what the kinds require of the running requests; waste = 1 - needed / held.

Modules: ``policies`` (what a kind needs), ``kinds`` (what it stores), ``geometry`` (how an arena is
cut), ``plan`` (the result), ``capacity`` (what requests cost on it), ``demand`` (what a server sets
aside for them), ``model_kinds`` (layers sorted into kinds), ``sizing`` (from kinds and bytes to a
server's arena), ``configs`` (kinds from a config.json), ``managers`` (what other KV managers hold),
``catalog`` (published geometries), ``request_digest`` (what is kept of a request's id), ``errors``.
"""
