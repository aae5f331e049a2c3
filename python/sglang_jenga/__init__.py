# SPDX-License-Identifier: Apache-2.0
"""Jenga memory for SGLang: one arena of KV bytes for every layer kind of a model."""

__version__ = "0.1.0"
