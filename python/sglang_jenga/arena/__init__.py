# SPDX-License-Identifier: Apache-2.0
"""The arena on a device: one buffer, strided views over it, and the host's copy of slot ids."""
