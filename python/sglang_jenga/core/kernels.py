# SPDX-License-Identifier: Apache-2.0
"""What kernels ask of a plan: who would read it wrongly or copy it, said before anything runs.

A view of the arena spans all of it, some twenty times what a stock pool of one layer spans. Most
kernels multiply a slot id by a stride in 64 bits; the ones below do not, or copy what they are
given. :mod:`sglang_jenga.sglang_ext.kernel_table` has the source line of every rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sglang_jenga.core.plan import ArenaPlan, KindPlan
from sglang_jenga.core.policies import State
from sglang_jenga.core.sizes import format_bytes

#: GPU generations by the major number of their compute capability (8.x: Ampere and Ada).
AMPERE, HOPPER, BLACKWELL, BLACKWELL_RTX = "sm80", "sm90", "sm100", "sm120"
EVERY_GPU = (AMPERE, HOPPER, BLACKWELL, BLACKWELL_RTX)
#: Attention backends that read K/V through strides and through the window translation table.
ATTENTION_BACKENDS = ("flashinfer", "triton", "fa3", "fa4", "trtllm_mha", "jenga_ref")
#: Where ``trtllm_mha`` is XQA in decode and fmha_v2 in prefill (SGLang's ``is_xqa_impl``).
XQA_GPUS = (HOPPER, BLACKWELL_RTX)

FA4_COPIED_HEAD = 256
#: XQA counts heads from the start of the view in 32 bits, FlashInfer elements of a page, and
#: trtllm-gen keeps the elements of a page in a C int.
XQA_HEADS = 2**32
FLASHINFER_PAGE_ELEMENTS = 2**32
TRTLLM_PAGE_ELEMENTS = 2**31
ONE_WIDTH = ("flashinfer", "trtllm_mha")
#: Backends that may be named as a way out, and where they run.
_WAYS_OUT = {"fa3": (AMPERE, HOPPER), "flashinfer": EVERY_GPU, "triton": EVERY_GPU}


def architecture(major: int) -> str:
    """The generation of a GPU, by the major number of its compute capability."""
    return f"sm{major}0"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionUse:
    """Resolved attention backends and the GPU that they run on."""

    prefill: str
    decode: str
    gpu: str

    @property
    def backends(self) -> tuple[str, ...]:
        """Each once, decode first."""
        return tuple(dict.fromkeys((self.decode, self.prefill)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StateKernels:
    """How the kernels of a recurrent family find a state on a GPU.

    limit_elements: slot id * elements of a slot must stay below it; None: they multiply in 64 bits.
    sums: what is added within the slot wraps at the same limit.
    why: what is known of them.
    """

    name: str
    why: str
    limit_elements: int | None = None
    sums: bool = False

    def first_wrong_slot(self, kind: KindPlan) -> int | None:
        """The first slot id whose state these kernels would look for elsewhere; None: there is
        none, whatever the arena."""
        if self.limit_elements is None:
            return None
        elements = kind.slot_bytes // min(row.itemsize_bytes for row in kind.spec.rows)
        if self.sums:
            return self.limit_elements // elements
        return -(-self.limit_elements // elements)


MAMBA2 = StateKernels(name="Mamba-2", why="triton kernels make the slot id int64 first")
DELTA_NET = StateKernels(
    name="gated delta net", why="triton kernels make the slot id int64 first; prefill gathers"
)
MAMBA1 = StateKernels(name="Mamba-1", why="torch indexes with int64")
SHORT_CONVOLUTION = StateKernels(
    name="short convolution",
    why="its CUDA kernel follows strides, but multiplies slot id and stride in 32 bits",
    limit_elements=2**32,
)
LIGHTNING = StateKernels(
    name="lightning attention",
    why="its kernels multiply slot id and stride in 32 bits, with a sign",
    limit_elements=2**31,
    sums=True,
)
UNCHECKED = StateKernels(
    name="unchecked",
    why="nobody has checked that its kernels multiply slot id and stride in 64 bits",
    limit_elements=2**31,
    sums=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One backend on one kind: what a rule looks at. decodes: it is the decode backend too."""

    plan: ArenaPlan
    kind: KindPlan
    backend: str
    decodes: bool
    gpu: str

    @property
    def name(self) -> str:
        return self.kind.spec.name

    @property
    def widths(self) -> tuple[int, ...]:
        """Elements of a head of K and V, each once, smallest first."""
        rows = self.kind.spec.rows
        return tuple(sorted({row.head_bytes // row.itemsize_bytes for row in rows}))


def attention_problems(plan: ArenaPlan, use: AttentionUse) -> tuple[str, ...]:
    """Why these backends cannot serve this plan, one sentence each; empty: they can."""
    return tuple(
        f"--attention-backend {backend} does not work with --radix-cache-backend jenga for this "
        f"model on this GPU ({use.gpu}): {reason}. Instead: use {_ways_out(plan, use.gpu)}."
        for backend in use.backends
        for reason in _reasons(plan, backend, use.gpu, decodes=backend == use.decode)
    )


def _ways_out(plan: ArenaPlan, gpu: str) -> str:
    """Backends that would serve the plan: triton reads every plan."""
    return " or ".join(
        name
        for name, gpus in _WAYS_OUT.items()
        if gpu in gpus and not _reasons(plan, name, gpu, decodes=True)
    )


def _reasons(plan: ArenaPlan, backend: str, gpu: str, *, decodes: bool) -> list[str]:
    readings = [
        _Reading(plan=plan, kind=kind, backend=backend, decodes=decodes, gpu=gpu)
        for kind in _attention_kinds(plan)
    ]
    found = (rule(reading) for rule in _RULES for reading in readings)
    return [reason for reason in found if reason is not None]


def _attention_kinds(plan: ArenaPlan) -> Iterator[KindPlan]:
    """Kinds whose rows are K and V."""
    return (kind for kind in plan.kinds if kind.spec.rows[0].part == "k")


def _copied_by_fa4(reading: _Reading) -> str | None:
    if reading.backend != "fa4" or reading.widths != (FA4_COPIED_HEAD,):
        return None
    spec = reading.kind.spec
    copied = reading.plan.num_slots(spec.name) * 2 * spec.rows[0].row_bytes
    return (
        f"it makes K and V with heads of {FA4_COPIED_HEAD} contiguous before each call, which for "
        f"kind {spec.name} copies {format_bytes(copied)} in each of {spec.num_layers} layers of "
        "every step"
    )


def _of_two_widths(reading: _Reading) -> str | None:
    if reading.backend not in ONE_WIDTH or len(reading.widths) == 1:
        return None
    return (
        f"K and V of kind {reading.name} have heads of {reading.widths[0]} and "
        f"{reading.widths[-1]} elements, and its kernels take one size for both"
    )


def _page_too_long(reading: _Reading) -> str | None:
    # SGLang gives FlashInfer pages of one token, whatever --page-size is.
    tokens, limit = {
        "flashinfer": (1, FLASHINFER_PAGE_ELEMENTS),
        "trtllm_mha": (reading.plan.page_tokens, TRTLLM_PAGE_ELEMENTS),
    }.get(reading.backend, (0, 1))
    elements = tokens * (reading.kind.slot_bytes // reading.kind.spec.rows[0].itemsize_bytes)
    if elements < limit:
        return None
    return (
        f"its kernels hold the distance of two pages in 32 bits, below {limit:,} elements, and "
        f"a page of {tokens:,} tokens of kind {reading.name} has {elements:,}"
    )


def _misread_by_xqa(reading: _Reading) -> str | None:
    if reading.backend != "trtllm_mha" or not reading.decodes or reading.gpu not in XQA_GPUS:
        return None
    slot_bytes = reading.kind.slot_bytes
    for head in sorted({row.head_bytes for row in reading.kind.spec.rows}):
        if slot_bytes % head:
            return (
                f"its decode kernel there (XQA) counts slots in heads, rounding down, and a slot "
                f"of kind {reading.name} of {slot_bytes:,} B is {slot_bytes / head:.3f} heads of "
                f"{head:,} B, so it would read other bytes than were written"
            )
        heads = reading.plan.arena_bytes // head
        if heads >= XQA_HEADS:
            return (
                f"its decode kernel there (XQA) counts heads in 32 bits, below {XQA_HEADS:,}, and "
                f"this arena has {heads:,} of {head:,} B (kind {reading.name}): an arena below "
                f"{format_bytes(XQA_HEADS * head)} (--jenga-arena-size) could be read"
            )
    return None


_RULES = (_copied_by_fa4, _of_two_widths, _page_too_long, _misread_by_xqa)


def attention_warnings(plan: ArenaPlan, use: AttentionUse, tokens: int) -> tuple[str, ...]:
    """What these backends do to this plan that is right and slow, one sentence each.

    ``tokens``: a context to state the price for.
    """
    if use.prefill != "trtllm_mha" or use.gpu not in XQA_GPUS:
        return ()
    found = []
    for kind in _attention_kinds(plan):
        per_token = 2 * kind.spec.rows[0].row_bytes
        found.append(
            f"--prefill-attention-backend trtllm_mha copies the K and V that a batch attends to on "
            f"{use.gpu}: kind {kind.spec.name} {per_token:,} B per token, "
            f"{format_bytes(per_token * tokens)} per layer for {tokens:,} tokens. Another prefill "
            "backend (flashinfer, triton) copies nothing."
        )
    return tuple(found)


def state_problem(plan: ArenaPlan, kernels: StateKernels) -> str | None:
    """Why the states of this plan cannot be served on a GPU; None: they can, or there are none."""
    kind = next((kind for kind in plan.kinds if isinstance(kind.spec.policy, State)), None)
    if kind is None:
        return None
    wrong, slots = kernels.first_wrong_slot(kind), plan.num_slots(kind.spec.name)
    if wrong is None or slots <= wrong:
        return None
    large_pages = wrong // kind.slots_per_large_page
    smaller = ""
    if large_pages > len(plan.kinds):  # the sink, and one for each kind
        served = large_pages * plan.large_page_bytes
        smaller = f"--jenga-arena-size {served} ({format_bytes(served)}) or less, or "
    return (
        f"--radix-cache-backend jenga does not serve the states of this model ({kernels.name}) on "
        f"a GPU in an arena of {format_bytes(plan.arena_bytes)}: {kernels.why}. Of its {slots:,} "
        f"state slots of {kind.slot_bytes:,} B those from {wrong:,} on would be read and written "
        f"elsewhere. Instead: {smaller}drop --radix-cache-backend to serve it with SGLang's own "
        "pools."
    )
