# SPDX-License-Identifier: Apache-2.0
"""The patches for SGLang in ``patches/``: read, applied, tried, measured, published.

series   what patches/VERSION/series.toml says of each patch
tree     SGLang's wheel as a git repository in upstream's layout
states   upstream-style tests run on one state of that tree after another
check    every claim of the series, tried
fork     release, series and plugin as one source tree for pip
sources  definitions looked up in sources that are not imported
fits     what of the plugin and of the series fits another release
count    which attachments of the plugin each state of the tree still needs
"""
