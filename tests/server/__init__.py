# SPDX-License-Identifier: Apache-2.0
"""Identity of a jenga server with a stock server: launcher, client, scenarios, variants.

Shared by ``make test`` (an agreed subset) and ``benchmark/identity/run.py`` (the full matrix).
"""
