# SPDX-License-Identifier: Apache-2.0
"""Which products the addresses of a CUDA kernel are made of, read off its PTX.

As :mod:`ir_products`, for kernels that nvcc compiles. ``mul.wide`` makes a 64-bit product of 32-bit
factors and is wide; ``mul.lo.s32`` and ``shl.b32`` keep 32 bits and are narrow.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from functools import cache
from pathlib import Path

from ir_products import Products, closure

_REGISTER = re.compile(r"%[a-z]+\d+")
_NARROW = re.compile(r"^(mul\.lo|mad\.lo|shl)\.[subb]+(16|32)$")
_WIDE = re.compile(r"^((mul\.lo|mad\.lo)\.[su]64|shl\.b64|(mul|mad)\.wide\.[su]32)$")
#: Writes no register.
_NO_RESULT = ("st.", "bra", "bar.", "ret", "setp", "red.", "prefetch", "call", "griddepcontrol")


def entries(ptx: str) -> dict[str, str]:
    """Bodies of the kernels of a module, by their names."""
    parts = re.split(r"^\.visible \.entry |^\.entry |^\.weak \.entry ", ptx, flags=re.MULTILINE)
    return {part.split("(", 1)[0].strip(): part for part in parts[1:]}


def products_in_addresses(body: str) -> Products:
    """Products of integers that one kernel loaded from global memory, in its global addresses."""
    made_of: dict[str, set[str]] = defaultdict(set)
    users: dict[str, set[str]] = defaultdict(set)
    loaded: set[str] = set()
    addresses: set[str] = set()
    products: list[tuple[str, set[str], str]] = []
    for line in body.splitlines():
        text = line.strip().rstrip(";")
        guard = re.match(r"@!?%p\d+ ", text)
        text = text[guard.end() :] if guard else text
        op, _, rest = text.partition(" ")
        rest = rest.strip()
        if not op or not _REGISTER.search(rest):
            continue
        if op.startswith(("ld.global", "st.global", "red.global", "atom.global", "cp.async")):
            for address in re.findall(r"\[([^\]]*)\]", rest):
                addresses.update(_REGISTER.findall(address))
        if op.startswith(("st.", "red.")) or op in ("bra", "ret"):
            continue
        head, _, tail = _split_result(rest)
        results, sources = set(_REGISTER.findall(head)), set(_REGISTER.findall(tail))
        if op.startswith(("ld.global", "atom.global")):
            loaded |= results
            continue  # what is loaded through an address is not made of it
        for result in results:
            made_of[result] |= sources
            for source in sources:
                users[source].add(result)
        for result in results:
            products.append((result, sources, f"{op} {rest}"))
    tainted = closure(loaded, users)
    reaching: set[str] = set()
    for address in addresses:
        reaching |= closure([address], made_of)
    narrow, wide = set(), set()
    for result, sources, text in products:
        if result in reaching and sources & tainted:
            op = text.split(" ", 1)[0]
            if _NARROW.match(op):
                narrow.add(text)
            elif _WIDE.match(op):
                wide.add(text)
    return Products(narrow=tuple(sorted(narrow)), wide=tuple(sorted(wide)))


def _split_result(rest: str) -> tuple[str, str, str]:
    """Operands of an instruction: what it writes (a register or a vector), and the others."""
    if rest.startswith("{"):
        return rest.partition("}")
    return rest.partition(",")


# ---- the compiler -----------------------------------------------------------------------------


@cache
def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


@cache
def nvcc() -> Path | None:
    """The compiler that comes with torch's wheels, or that of the machine."""
    ours = site_packages() / "nvidia" / "cu13" / "bin" / "nvcc"
    found = str(ours) if ours.is_file() else shutil.which("nvcc")
    return Path(found) if found else None


def why_no_nvcc() -> str | None:
    """Why CUDA sources cannot be compiled here; None: they can."""
    if nvcc() is None:
        return "not run: no nvcc, neither in the environment (nvidia-cuda-nvcc) nor on PATH"
    if shutil.which("g++") is None:
        return "not run: nvcc needs a C++ compiler, and there is no g++"
    return None


def to_ptx(source: str, folder: Path, *, architecture: str = "sm_90a") -> str:
    """Compile a CUDA source that includes SGLang's JIT kernels.

    Raises:
        RuntimeError: nvcc refuses it.
    """
    compiler = nvcc()
    assert compiler is not None, why_no_nvcc()
    packages = site_packages()
    includes = [
        packages / "sglang" / "kernels" / "jit" / "csrc",
        packages / "sglang" / "kernels" / "jit" / "include",
        packages / "tvm_ffi" / "include",
        packages / "nvidia" / "cu13" / "include",
        packages / "nvidia" / "cu13" / "include" / "cccl",
    ]
    file = folder / "kernel.cu"
    file.write_text(source)
    made = folder / "kernel.ptx"
    done = subprocess.run(
        [
            str(compiler),
            "-std=c++20",
            "-O3",
            "--expt-relaxed-constexpr",
            "-ptx",
            f"-arch={architecture}",
            # The compiler's wheel may be a minor version ahead of that of the headers.
            "-DCCCL_DISABLE_CTK_COMPATIBILITY_CHECK",
            f"-DSGL_CUDA_ARCH={int(re.sub('[^0-9]', '', architecture)) * 10}",
            *[f"-I{path}" for path in includes],
            str(file),
            "-o",
            str(made),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"nvcc ended with {done.returncode}: {done.stderr[-3000:]}")
    return made.read_text()
