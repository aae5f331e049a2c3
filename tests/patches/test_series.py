# SPDX-License-Identifier: Apache-2.0
"""The patches for SGLang do what the series claims, and the check of it notices when they do not.

One process holds torch for all of these tests; each state of SGLang runs in a fork of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from patch_series.check import check
from patch_series.series import PATCHES, RELEASE, Series, SeriesError, load
from patch_series.states import Worker
from patch_series.surface import surface_problems
from patch_series.tree import Tree, installed_wheel, make_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]

FIX, SEAM = "0004", "0009"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return make_tree(installed_wheel(), tmp_path_factory.mktemp("upstream") / RELEASE)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture
def problems_of(tree: Tree, worker: Worker, tmp_path: Path) -> Callable[..., list[str]]:
    """What the check says of one patch after ``edit`` changed its text, or ``tell`` the series'."""

    def run(
        number: str,
        edit: Callable[[str], str] = lambda text: text,
        tell: Callable[[str], str] = lambda text: text,
    ) -> list[str]:
        folder = tmp_path / RELEASE
        folder.mkdir()
        patch = next(p for p in load().patches if p.number == number)
        text = (PATCHES / RELEASE / patch.file).read_text(encoding="utf-8")
        (folder / patch.file).write_text(edit(text), encoding="utf-8")
        rows = (PATCHES / RELEASE / "series.toml").read_text(encoding="utf-8").split("[[patch]]")
        row = next(row for row in rows if f'"{patch.file}"' in row).split("[[left_out]]")[0]
        (folder / "series.toml").write_text("[[patch]]" + tell(row), encoding="utf-8")
        series = load(root=tmp_path)
        return check(series, installed_wheel(), tree, worker, say=lambda line: None)

    return run


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def test_every_claim_of_the_series_holds(tree: Tree, worker: Worker) -> None:
    assert check(load(), installed_wheel(), tree, worker, say=print) == []


def test_a_fix_that_mends_nothing_is_noticed(problems_of: Callable[..., list[str]]) -> None:
    found = problems_of(FIX, replaced("+ batch.encoder_lens\n", "+ 0 * batch.encoder_lens\n"))
    assert any("test_decoded_tokens_take_slots_of_their_own" in said for said in found)


def test_a_patch_that_does_not_apply_is_noticed(problems_of: Callable[..., list[str]]) -> None:
    found = problems_of(FIX, replaced(" # Paged allocation\n", " # Paged allocations\n"))
    assert any("does not apply" in said for said in found)


def test_a_test_that_passes_without_the_fix_is_noticed(
    problems_of: Callable[..., list[str]],
) -> None:
    no_encoder = replaced(
        "+        batch = self._make_batch(encoder_lens=[3, 0, 6], decoder_lens=[5, 5, 1])\n",
        "+        batch = self._make_batch(encoder_lens=[0, 0, 0], decoder_lens=[5, 5, 1])\n",
    )
    assert any("passes without the patch" in said for said in problems_of(FIX, no_encoder))


def test_a_seam_that_is_not_there_is_noticed(problems_of: Callable[..., list[str]]) -> None:
    found = problems_of(SEAM, tell=replaced("allocation.register", "allocation.announce"))
    assert any("there is no" in said for said in found)


def test_what_others_can_no_longer_call_is_noticed(tree: Tree) -> None:
    file = tree.python / "sglang/srt/mem_cache/allocation.py"
    edit = replaced("def alloc_for_decode(batch: ScheduleBatch, token_per_req: int)", "SIGNATURE")
    source = file.read_text(encoding="utf-8")
    for signature, said in (
        ("def alloc_for_decode(batch, tokens)", "lost its parameter token_per_req"),
        ("def alloc_for_decode(batch, token_per_req, row)", "asks for row"),
        ("def alloc_for_decode(token_per_req, batch)", "in another order"),
        ("def alloc_decode(batch, token_per_req)", "alloc_for_decode is gone"),
    ):
        file.write_text(edit(source).replace("SIGNATURE", signature), encoding="utf-8")
        assert any(said in problem for problem in surface_problems(tree)), signature
    wider = edit(source).replace(
        "SIGNATURE", "def alloc_for_decode(batch, token_per_req, row=None)"
    )
    file.write_text(wider, encoding="utf-8")
    assert surface_problems(tree) == []
    tree.reset()


def test_a_wheel_that_was_edited_is_no_base(tmp_path: Path) -> None:
    wheel = installed_wheel()
    copy = tmp_path / "site"
    info = f"sglang-{wheel.version}.dist-info"
    shutil.copytree(wheel.folder / info, copy / info)
    (copy / "sglang").mkdir()
    (copy / "sglang" / "__init__.py").write_text("edited = True\n", encoding="utf-8")
    with pytest.raises(SeriesError, match=r"sglang/__init__.py was changed"):
        make_tree(replace(wheel, folder=copy), tmp_path / "tree")


def test_the_series_names_the_files_that_are_there(tmp_path: Path) -> None:
    shutil.copytree(PATCHES / RELEASE, tmp_path / RELEASE)
    assert isinstance(load(root=tmp_path), Series)
    next((tmp_path / RELEASE).glob("0001-*.patch")).unlink()
    with pytest.raises(SeriesError, match="0001-"):
        load(root=tmp_path)
