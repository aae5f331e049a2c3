# SPDX-License-Identifier: Apache-2.0
"""SGLang's CUDA kernels that write K/V multiply slot ids in 64 bits, read off their PTX."""

from __future__ import annotations

from pathlib import Path

import pytest

import ptx_products
from ir_products import Products

pytestmark = pytest.mark.slow

#: Explicit instantiations, with what SGLang's Python would give them for heads of 128 in bfloat16;
#: PDL: whether launches overlap.
SOURCES = {
    "store_cache": (
        "#include <elementwise/kvcache.cuh>\n"
        "template struct sglang::StoreKVCacheKernel<4096, 4096, 64, PDL>;\n"
    ),
    "rope and store": (
        "#include <elementwise/rope.cuh>\n"
        "template struct sglang::FusedRopeKernel<true, 128, PDL, __nv_bfloat16, __nv_bfloat16>;\n"
    ),
    "fp8 write": (
        "#include <attention/fused_fp8_qkv_kv_cache.cuh>\n"
        "template struct sglang::FusedFp8QkvKvCache<__nv_bfloat16, PDL>;\n"
    ),
    "conv1d of CUDA": (
        "#include <mamba/causal_conv1d.cuh>\n"
        "template void sglang::mamba_conv::causal_conv1d_update<__nv_bfloat16>("
        "tvm::ffi::TensorView, tvm::ffi::TensorView, tvm::ffi::TensorView, "
        "tvm::ffi::Optional<tvm::ffi::TensorView>, "
        "bool, tvm::ffi::Optional<tvm::ffi::TensorView>, "
        "tvm::ffi::Optional<tvm::ffi::TensorView>, int64_t);\n"
    ),
}


def products(name: str, folder: Path, architecture: str = "sm_90a") -> dict[str, Products]:
    """Of each kernel of a source that has products of loaded integers in its addresses."""
    why = ptx_products.why_no_nvcc()
    if why:
        pytest.skip(why)
    # Launches that overlap are for Hopper and later.
    source = SOURCES[name].replace("PDL", "false" if architecture == "sm_80" else "true")
    ptx = ptx_products.to_ptx(source, folder, architecture=architecture)
    found = {
        kernel: ptx_products.products_in_addresses(body)
        for kernel, body in ptx_products.entries(ptx).items()
    }
    return {kernel: one for kernel, one in found.items() if one.narrow or one.wide}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.parametrize("name", ["store_cache", "rope and store", "fp8 write"])
def test_slot_ids_are_multiplied_in_64_bits(name: str, architecture: str, tmp_path: Path) -> None:
    found = products(name, tmp_path, architecture)
    assert found, "no product of a loaded id was found at all"
    for kernel, one in found.items():
        assert one.narrow == (), f"{kernel}: {one.narrow}"


def test_the_convolution_that_is_refused_is_found_out(tmp_path: Path) -> None:
    """The control: its states are addressed by 32-bit products."""
    found = products("conv1d of CUDA", tmp_path)
    assert any(one.narrow for one in found.values()), found


WRAPS = """
ld.global.u32 %r1, [%rd1];
mul.lo.s32 %r2, %r1, %r9;
mul.wide.u32 %rd2, %r2, 2;
add.s64 %rd3, %rd9, %rd2;
st.global.u16 [%rd3], %rs1;
"""


def test_a_32_bit_product_is_found_behind_a_wider_one() -> None:
    found = ptx_products.products_in_addresses(WRAPS)
    assert found.narrow == ("mul.lo.s32 %r2, %r1, %r9",)
    assert found.wide == ("mul.wide.u32 %rd2, %r2, 2",)


@pytest.mark.parametrize(
    "right",
    [
        WRAPS.replace(
            "mul.lo.s32 %r2, %r1, %r9", "cvt.s64.s32 %rd7, %r1;\nmul.lo.s64 %r2, %rd7, %rd8"
        ),
        WRAPS.replace("[%rd3]", "[%rd8]"),  # not in an address
        WRAPS.replace("%r2, %r1, %r9", "%r2, %r8, %r9"),  # not of a loaded integer
    ],
)
def test_other_products_are_not(right: str) -> None:
    assert ptx_products.products_in_addresses(right).narrow == ()
