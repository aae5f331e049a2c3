# SPDX-License-Identifier: Apache-2.0
"""Model files that SGLang lacks, and the function that makes SGLang use them."""

from sglang_jenga.models.registration import register_models

__all__ = ["register_models"]
