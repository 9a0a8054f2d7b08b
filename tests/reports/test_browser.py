"""The page in a real browser, alone in a folder and without a network.

Any Chromium will do, on Debian that of `apt-get install chromium`. The variable CHROMIUM may name another.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.record import Record
from reports.report import write_report

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")

#: What the page itself cannot say: it runs no script. So this one is put into a copy, before the policy.
PROBE = """<script>
addEventListener("securitypolicyviolation", () => { window.refused = true; });
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const found = {
    images: all("img").map((image) => [image.complete, image.naturalWidth, image.clientWidth]),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    refused: Boolean(window.refused),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    styled: getComputedStyle(document.querySelector("td:last-child")).textAlign,
    links: all("a").map((link) => Boolean(document.getElementById(link.hash.slice(1)))),
  };
  document.documentElement.setAttribute("data-found", JSON.stringify(found));
});
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's command."""
    named = os.environ.get("CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(
            "no Chromium on this machine; install one (apt-get install chromium), or name it in CHROMIUM"
        )
    return path


def opened(chromium: str, page: Path, folder: Path) -> dict[str, Any]:
    """What the probe finds in a copy of the page."""
    text = page.read_text(encoding="utf-8")
    copy = folder / "alone.html"
    copy.write_text(text.replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    command = [chromium, *options, "--window-size=500,800", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    match = re.search(r' data-found="([^"]*)"', done.stdout)
    assert match is not None, done.stderr[-2000:]
    return dict(json.loads(html.unescape(match[1])))


def test_a_browser_shows_every_image_and_loads_nothing(
    chromium: str, records: list[Record], tmp_path: Path
) -> None:
    page = write_report(records, tmp_path / "report").with_suffix(".html")
    (tmp_path / "elsewhere").mkdir()
    state = opened(chromium, page, tmp_path / "elsewhere")
    assert len(state["images"]) == page.with_suffix(".md").read_text(encoding="utf-8").count("![") > 4
    assert all(complete and width > 100 and shown > 100 for complete, width, shown in state["images"])
    assert [name for name in state["loaded"] if not name.startswith("data:")] == []
    assert not state["refused"]
    assert state["overflow"] <= 0
    assert state["styled"] == "right"
    assert state["links"]
    assert all(state["links"])


def test_a_broken_image_would_be_seen(chromium: str, records: list[Record], tmp_path: Path) -> None:
    page = write_report(records[-4:], tmp_path).with_suffix(".html")
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("data:image/svg+xml;base64,", "figures/lost.svg?", 1), encoding="utf-8")
    state = opened(chromium, page, tmp_path)
    first, *others = (width == 0 for _, width, _ in state["images"])
    assert first
    assert others
    assert not any(others)
    assert state["refused"]
