# SPDX-License-Identifier: Apache-2.0
"""A kind that SGLang has no word for: the first tokens of a request and a sliding window."""
