# SPDX-License-Identifier: Apache-2.0
"""From a model's config.json to its kinds: no transformers, no torch, nothing is downloaded.

    find.py       which configuration is meant: a file, a directory, a name that ships with us
    read.py       its architecture, its dtypes, its kinds
    families.py   the architectures that are known, each with the function that lists its layers
    published.py  configurations of published models, by name

The functions in ``attention_families`` and ``state_families`` repeat what SGLang's model files and
configuration classes do; a test builds each tested family's model and compares.
"""
