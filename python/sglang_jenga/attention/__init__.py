# SPDX-License-Identifier: Apache-2.0
"""Reference attention in plain torch for heterogeneous paged KV pools.

| module | what it holds |
| --- | --- |
| `reference` | the dense math: who sees whom, softmax with sinks and soft cap. Pure torch. |
| `paged` | what to gather for a batch (tiles, padding, slots), and the pass over it. Pure torch. |
| `backend` | the SGLang attention backend `jenga_ref` built from the two. Imports SGLang. |
| `register` | how SGLang finds and selects it. Imports SGLang when called. |
"""
