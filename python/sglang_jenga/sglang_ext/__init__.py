# SPDX-License-Identifier: Apache-2.0
"""Everything that knows SGLang: entry points, hooks, pools, allocator adaptor, admission, radix."""
