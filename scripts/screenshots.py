# SPDX-License-Identifier: Apache-2.0
"""``python scripts/screenshots.py``: the pictures in docs/top-and-map.md.

They show docs/images/arena.jsonl. ``--record`` first makes that file anew: a tiny Gemma 3 server on
this machine under a load that fills its arena. The picture of ``top`` is drawn here, so it is the
same everywhere and a test compares it; the pictures of the map are taken in a browser
(``make test`` sets it up).
"""

from __future__ import annotations

import argparse
import html
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))

from sglang_jenga.cli.frame import Frame, draw  # noqa: E402
from sglang_jenga.cli.map import record  # noqa: E402
from sglang_jenga.cli.map_page import page, page_data  # noqa: E402
from sglang_jenga.cli.recording import as_line, read  # noqa: E402
from sglang_jenga.cli.samples import History  # noqa: E402
from sglang_jenga.cli.server import Server  # noqa: E402
from sglang_jenga.cli.spans import UNICODE, Glyphs, rendered  # noqa: E402

IMAGES = ROOT / "docs" / "images"
RECORDING = IMAGES / "arena.jsonl"
URL = "http://localhost:30000"
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
_COLUMN, _ROW, _BORDER = 8.4, 18, 16
#: The 256 colours that top uses, as RGB.
_RGB = {33: "#0087ff", 37: "#00afaf", 166: "#d75f00", 172: "#d78700", 245: "#8a8a8a"}
_SERVER_FLAGS = (
    *("--dtype", "float32", "--device", "cpu", "--radix-cache-backend", "jenga"),
    *(
        "--jenga-arena-size",
        "5MiB",
        "--max-running-requests",
        "16",
        "--served-model-name",
        "tiny-gemma3",
    ),
    *("--chunked-prefill-size", "256", "--context-length", "1200"),
)


def top_frame(*, colour: bool, glyphs: Glyphs, rows: int | None) -> list[str]:
    """The last frame of ``top`` over the recording."""
    _, samples = read(RECORDING)
    history = History()
    for sample in samples:
        views = history.add(sample)
    frame = Frame(columns=100, rows=rows, glyphs=glyphs)
    lines = draw(frame, views, url=URL, clock="14:03:22", trouble=None)
    return [rendered(line, colour=colour) for line in lines]


def top_lines() -> list[str]:
    """What a terminal of 100 columns gets, with escape codes."""
    return top_frame(colour=True, glyphs=UNICODE, rows=24)


def svg(lines: list[str], columns: int = 100) -> str:
    """Terminal lines as a picture. Knows the escape codes that ``top`` writes, and no others."""
    width, height = columns * _COLUMN + 2 * _BORDER, len(lines) * _ROW + 2 * _BORDER
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img">',
        "<title>sglang-jenga top</title>",
        '<rect width="100%" height="100%" rx="6" fill="#1b1d22"/>',
        '<g font-family="Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="14" '
        'fill="#e6e6e6" xml:space="preserve">',
    ]
    for row, line in enumerate(lines):
        column, style = 0, ""
        # Text, codes, text, codes, ... as the expression splits them.
        for index, piece in enumerate(_ESCAPE.split(line)):
            if index % 2:
                style = piece
            elif piece:
                out += _pieces(piece, style, column, row)
                column += len(piece)
    return "\n".join([*out, "</g>", "</svg>"]) + "\n"


def _pieces(text: str, style: str, column: int, row: int) -> list[str]:
    """Blocks as rectangles, since fonts leave gaps between them; the rest as text."""
    codes = style.split(";")
    fill = _RGB[int(codes[codes.index("5") + 1])] if "5" in codes else "#e6e6e6"
    if style == "2":
        fill = "#9a9a9a"
    weight = ' font-weight="bold"' if codes[0] == "1" else ""
    y = _BORDER + row * _ROW
    out = []
    for found in _WORDS.finditer(text):
        run = found[0]
        x = _BORDER + (column + found.start()) * _COLUMN
        if _is_block(run[0]):
            out.append(_rectangle(run, x, y, fill))
        else:
            out.append(
                f'<text x="{x:.1f}" y="{y + 13.5:.1f}" fill="{fill}"{weight} '
                f'textLength="{len(run) * _COLUMN:.1f}">{html.escape(run)}</text>'
            )
    return out


_SHADES = {"█": 1.0, "▓": 0.85, "▒": 0.6, "░": 0.3}
_EIGHTHS = "▁▂▃▄▅▆▇"
#: Equal blocks in a row, or words with single spaces between them.
_WORDS = re.compile(r"([█▓▒░▁▂▃▄▅▆▇])\1*|[^\s█▓▒░▁▂▃▄▅▆▇]+(?: [^\s█▓▒░▁▂▃▄▅▆▇]+)*")


def _is_block(character: str) -> bool:
    return character in _SHADES or character in _EIGHTHS


def _rectangle(run: str, x: float, y: float, fill: str) -> str:
    character = run[0]
    part = (_EIGHTHS.index(character) + 1) / 8 if character in _EIGHTHS else 1.0
    height = (_ROW - 3) * part
    return (
        f'<rect x="{x:.1f}" y="{y + 1 + (_ROW - 3) - height:.1f}" width="{len(run) * _COLUMN:.1f}" '
        f'height="{height:.1f}" fill="{fill}" opacity="{_SHADES.get(character, 1.0)}"/>'
    )


def take_map_pictures() -> bool:
    """The map in a light and a dark window; False: there is no browser here."""
    url, samples = read(RECORDING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.html"
        path.write_text(page(page_data(url, samples)), encoding="utf-8")
        free = [s.schedulers[0].state["jenga"]["large_pages_free"] for s in samples]
        # After the start, where there is most to see.
        at = f"jengaMap.show({free.index(max(free[1:]), 1)})"
        theme = "document.documentElement.dataset.theme = '{}'; dispatchEvent(new Event('resize'))"
        command = [sys.executable, str(ROOT / "scripts" / "browser.py"), str(path), at]
        for name in ("light", "dark"):
            command += [theme.format(name), f"shot:{IMAGES / f'map-{name}.png'}"]
        done = subprocess.run([*command, "--size", "1000x1080"], check=False).returncode == 0
    light, dark = (IMAGES / f"map-{name}.png" for name in ("light", "dark"))
    if done and light.read_bytes() == dark.read_bytes():
        raise SystemExit("the browser was too slow: the dark picture shows the light page; again")
    return done


def make_recording() -> None:
    """Serve the tiny model, keep it busy for a while and write down what the arena held."""
    from sglang_jenga.demo.server import Server as Process
    from sglang_jenga.tiny import build

    with tempfile.TemporaryDirectory() as folder:
        model = str(build("gemma3", Path(folder) / "gemma3"))
        log = Path(folder) / "server.log"
        environ = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with Process(model, _SERVER_FLAGS, log_path=log, environ=environ) as process:
            process.wait_until_ready(400.0, lambda seconds: None)
            stop = threading.Event()
            clients = [
                threading.Thread(target=chat, args=(process.url, seed, stop)) for seed in range(14)
            ]
            for client in clients:
                client.start()
            samples = record(Server(process.url, timeout_seconds=60.0), 24, 0.8, None)
            stop.set()
            for client in clients:
                client.join()
    IMAGES.mkdir(exist_ok=True)
    RECORDING.write_text("".join(as_line(sample, URL) + "\n" for sample in samples), "utf-8")


def chat(url: str, seed: int, stop: threading.Event) -> None:
    """Conversations that begin with one of three texts and grow, until told to stop."""
    rng = random.Random(seed)
    systems = [[random.Random(1000 + i).randrange(5, 1000) for _ in range(200)] for i in range(3)]
    while not stop.is_set():
        ids = [*rng.choice(systems), *(rng.randrange(5, 1000) for _ in range(40))]
        for _ in range(rng.randrange(1, 6)):
            body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 24, "ignore_eos": True}}
            request = urllib.request.Request(
                f"{url}/generate",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as reply:
                ids = [*ids, *json.load(reply)["output_ids"]]
            ids += [rng.randrange(5, 1000) for _ in range(rng.randrange(20, 120))]
            if stop.is_set() or len(ids) > 1000:
                break


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--record", action="store_true", help="serve, and record the snapshots anew"
    )
    if parser.parse_args().record:
        make_recording()
    (IMAGES / "top.svg").write_text(svg(top_lines()), encoding="utf-8")
    if not take_map_pictures():
        print("the pictures of the map were left as they are: no browser", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
