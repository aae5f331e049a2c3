# SPDX-License-Identifier: Apache-2.0
"""``python -m sglang_jenga.demo``: a real server on one arena, two clients, and what it held.

| module | what it holds |
| --- | --- |
| `server` | start the server, wait until it answers, stop it whatever happens |
| `clients` | a frontend-language program and an OpenAI chat against it |
"""
