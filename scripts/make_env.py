# SPDX-License-Identifier: Apache-2.0
"""``python3 scripts/make_env.py VENV STAMP`` makes the virtual environment, for the Makefile.

Runs on the bare python3 of the machine, however old, so that it can say what is wrong with it.
Every step that fails says what failed and what to do; the stamp is written last, so a broken set-up
is never taken for a finished one.
"""

import glob
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
CANDIDATES = ("python3.12", "python3.13", "python3.11")
#: Bytes that SGLang with its CUDA libraries takes on disk, downloads included.
DISK_BYTES = 16 * 2**30
# `serve` pins SGLang; its own metadata pins torch, flashinfer and the rest.
PACKAGES = ("-e", ".[serve,test,check]", "-e", "./sglang_portable_cpu")
CHECK = """
from importlib.metadata import entry_points, version
names = {e.name for g in ("plugins", "platforms") for e in entry_points(group="sglang.srt." + g)}
assert {"jenga", "portable_cpu"} <= names, f"entry points missing, found {sorted(names)}"
import sglang_jenga, sglang_portable_cpu
print(f"ready: sglang {version('sglang')}, sglang-jenga {version('sglang-jenga')}")
"""


def stop(what, remedy):
    """End with one readable message instead of a traceback."""
    sys.exit(f"\nset-up failed: {what}\nWhat to do: {remedy}")


def find_python():
    """Path of an interpreter that is new enough: the running one, else the first known name."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for name in CANDIDATES:
        path = shutil.which(name)
        if path:
            return path
    stop(
        f"{sys.executable} is Python {sys.version.split()[0]}, too old: Python "
        f"{OLDEST[0]}.{OLDEST[1]} or newer is needed",
        "install Python 3.12 (apt install python3.12 python3.12-venv, pyenv install 3.12, or "
        "python.org), or name one: make demo PYTHON=/path/to/python3.12",
    )


def run(command, what, remedy):
    """Run one step with its output in view; stop where it fails."""
    print("+ " + " ".join(command if "-c" not in command else [*command[:2], "..."]), flush=True)
    try:
        code = subprocess.call(command)
    except OSError as error:
        stop(f"{what} ({error})", remedy)
    except KeyboardInterrupt:
        sys.exit("\nset-up interrupted; the next run goes on where this one stopped")
    if code:
        stop(f"{what} (exit status {code}, its own message is above)", remedy)


def make_venv(venv):
    """Create ``venv`` unless it has an interpreter already."""
    if os.path.exists(os.path.join(venv, "bin", "python")):
        return
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(venv))).free
    if free < DISK_BYTES:
        print(
            f"warning: {free >> 30} GiB of disk are free here; SGLang with its CUDA libraries and "
            f"their downloads takes up to {DISK_BYTES >> 30} GiB",
            flush=True,
        )
    run(
        [find_python(), "-m", "venv", venv],
        "could not create the virtual environment " + venv,
        "on Debian and Ubuntu install the venv module (apt install python3-venv); else remove "
        f"{venv} and name another interpreter: make demo PYTHON=/path/to/python3.12",
    )


def main():
    venv, stamp = sys.argv[1:]
    make_venv(venv)
    # Another checkout that shared this environment installs itself again when it is used next.
    for outdated in glob.glob(os.path.join(venv, ".sglang-jenga-*")):
        os.remove(outdated)
    python = os.path.join(venv, "bin", "python")
    print(f"Installing SGLang and sglang-jenga into {venv}: about 11 GB, once.", flush=True)
    run(
        [python, "-m", "pip", "install", "--disable-pip-version-check", *PACKAGES],
        "pip could not install the packages",
        "for a network error run the same make command again (finished downloads are kept); for "
        f"'No matching distribution' use Python 3.11 or 3.12 (rm -r {venv}; make demo "
        f"PYTHON=python3.12); for 'No space left' free {DISK_BYTES >> 30} GiB or put the "
        "environment elsewhere: make demo VENV=/other/disk/venv",
    )
    run(
        [python, "-c", CHECK],
        "the packages are installed but do not load",
        f"remove {venv} and run the same make command again",
    )
    with open(stamp, "w") as file:
        file.write("made by scripts/make_env.py; remove this file to install again\n")


if __name__ == "__main__":
    main()
