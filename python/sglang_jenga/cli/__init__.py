# SPDX-License-Identifier: Apache-2.0
"""The command ``sglang-jenga``. Needs neither torch nor SGLang: it talks HTTP to a server."""
