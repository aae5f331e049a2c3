# SPDX-License-Identifier: Apache-2.0
"""``python scripts/browser.py PAGE SCRIPT...``: open a page in Chromium and say what it answers.

Each SCRIPT is JavaScript whose value is printed as one JSON line; ``shot:FILE`` instead saves a
picture of the window, and ``key:NAME`` presses a key, as Right. They run one after the other, each
when the page has settled. Qt's Chromium comes in a wheel, in an environment of its own that
``make test`` sets up; no screen is needed. Exit status 3: there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

MISSING = 3
_BROWSER = Path(__file__).resolve().parents[1] / ".venv-browser" / "bin" / "python"
_SETTLE_MS = 400
_LIMIT_MS = 60_000
_TWO_FRAMES = (
    "window.drawnFrames = 0;"
    "requestAnimationFrame(() => requestAnimationFrame(() => { window.drawnFrames = 2; }));"
)
_DRAWN = "2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("scripts", nargs="+")
    parser.add_argument("--size", default="1100x900", help="of the window, in pixels")
    args = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    flags = "--disable-gpu --disable-dev-shm-usage --force-color-profile=srgb"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags += " --no-sandbox"  # Chromium refuses its sandbox to root, as in containers
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", flags)
    try:
        return browse(args.page, args.scripts, *map(int, args.size.split("x")))
    except ImportError as error:
        if _BROWSER.exists() and Path(sys.executable) != _BROWSER:
            os.execv(_BROWSER, [str(_BROWSER), *sys.argv])
        print(f"no browser here: {error}; `make test` sets one up", file=sys.stderr)
        return MISSING


def browse(page: Path, scripts: list[str], width: int, height: int) -> int:
    """Open the page and run the scripts; the exit status."""
    from PySide6.QtCore import Qt, QTimer, QUrl
    from PySide6.QtTest import QTest
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: Any, text: str, *where: Any) -> None:
            if level == QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel:
                print(f"error in the page: {text} {where}", file=sys.stderr)

    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    view.setPage(Page(view))
    view.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen)
    view.resize(width, height)
    left = list(scripts)

    def answer(value: Any) -> None:
        print(json.dumps(value), flush=True)
        QTimer.singleShot(_SETTLE_MS, step)

    def step() -> None:
        if not left:
            app.exit(0)
        elif left[0].startswith("shot:"):
            view.page().runJavaScript(_TWO_FRAMES)
            QTimer.singleShot(_SETTLE_MS, shoot)
        elif left[0].startswith("key:"):
            key = getattr(Qt.Key, f"Key_{left.pop(0).removeprefix('key:')}")
            QTest.keyClick(view.focusProxy(), key)
            answer(True)
        else:
            view.page().runJavaScript(left.pop(0), answer)

    def shoot(frames: Any = None) -> None:
        """Save the window once the page has drawn two frames more and they had time to arrive."""
        if frames != _DRAWN:
            question = "String(window.drawnFrames)"
            QTimer.singleShot(_SETTLE_MS // 4, lambda: view.page().runJavaScript(question, shoot))
        else:
            name = left.pop(0).removeprefix("shot:")
            QTimer.singleShot(_SETTLE_MS, lambda: answer(view.grab().save(name)))

    def loaded(ok: bool) -> None:
        if ok:
            QTimer.singleShot(_SETTLE_MS, step)
        else:
            print(f"{page} did not load", file=sys.stderr)
            app.exit(1)

    view.loadFinished.connect(loaded)
    QTimer.singleShot(_LIMIT_MS, lambda: app.exit(124))
    view.load(QUrl.fromLocalFile(str(page.resolve())))
    view.show()
    view.setFocus()
    status = app.exec()
    # The page goes before the profile that it belongs to.
    view.setPage(None)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
