"""The site: links that work on GitHub lead to the same thing there, and nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from scripts.docs import site

ROOT = Path(__file__).resolve().parents[3]
MODULES = ["methods.base", "bench.grid.executors"]


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("prompts.md", "duallora.md#results", "duallora.md#results"),
        ("results.md", "../results/README.md", "results-folder.md"),
        ("index.md", "docs/protocols.md", "protocols.md"),
        ("index.md", "results/reference/report/report.md", "reference-report.md"),
        ("reference-report.md", "figures/a.svg", "files/results/reference/report/figures/a.svg"),
        ("index.md", "methods/base.py", "api/methods.base.md"),
        ("adding-an-executor.md", "../bench/grid/executors/__init__.py", "api/bench.grid.executors.md"),
        ("index.md", "LICENSE", "files/LICENSE"),
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("index.md", "#methods", "#methods"),
    ],
)
def test_a_link_leads_in_the_site_where_it_leads_in_the_repository(page, link, expected):
    assert site.site_links(f"[text]({link}) and", page, MODULES) == f"[text]({expected}) and"


def test_code_is_left_as_it_is():
    text = "`[a](b.md)` and\n\n```\n[a](../b.md)\n```\n"
    assert site.site_links(text, "results.md", MODULES) == text
    assert list(site.links(text)) == []


def test_a_link_with_code_as_its_text_is_a_link():
    assert site.site_links("[`a`](../LICENSE)", "results.md", MODULES) == "[`a`](files/LICENSE)"


def test_code_between_links_is_no_part_of_them():
    text = "| [`a`](../methods/base.py) | the `b` and `c` | [d](../LICENSE) |"
    expected = "| [`a`](api/methods.base.md) | the `b` and `c` | [d](files/LICENSE) |"
    assert site.site_links(text, "results.md", MODULES) == expected


@pytest.mark.parametrize(
    "image",
    [
        "![b](https://example.org/b.svg)",
        "[![b](https://example.org/b.svg)](LICENSE)",
        "[![CI](../../actions/workflows/ci.yml/badge.svg)](../../actions/workflows/ci.yml)",
    ],
)
def test_an_image_that_is_not_in_the_repository_is_left_out(image):
    assert site.without_remote_images(f"a {image} b", "index.md") == "a  b"


def test_an_image_of_the_repository_stays():
    text = "![b](results/reference/b.svg) [![b](docs/b.svg)](LICENSE)"
    assert site.without_remote_images(text, "index.md") == text


def test_linked_files_are_copied_and_pages_are_not():
    texts = {"README.md": "[l](LICENSE) [p](docs/prompts.md) [m](methods/base.py) [g](gone.md) [d](docs)"}
    assert site.copied_files(texts, MODULES) == {"LICENSE"}


def test_the_modules_are_those_of_the_navigation():
    nav = [{"Home": "index.md"}, {"API": [{"b": "api/methods.base.md"}, "api/bench.record.md"]}]
    assert site.api_modules(nav) == ["methods.base", "bench.record"]


class Sources(HTMLParser):
    """Collects what a browser loads of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif source := values.get("src") or (tag == "link" and values.get("href")):
            self.loaded.append(str(source))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_the_readme_every_page_of_docs_and_the_api(built):
    pages = {path.relative_to(built).with_suffix(".md").as_posix() for path in built.rglob("*.html")}
    expected = {path.name for path in (ROOT / "docs").glob("*.md")} | set(site.PAGES.values())
    assert expected <= pages
    assert "api/bench.record.md" in pages
    assert 'id="bench.record.read_all"' in (built / "api/bench.record.html").read_text()


def test_no_page_loads_anything_from_another_server(built):
    pages = list(built.rglob("*.html"))
    loaded = [source for page in pages for source in Sources(page.read_text()).loaded]
    assert len(loaded) > len(pages)
    assert [source for source in loaded if urlsplit(source).netloc] == []
    styles = "".join(path.read_text() for path in built.rglob("*.css"))
    assert re.findall(r"url\((?:https?:)?//[^)]*\)|@import[^;]*//", styles) == []


def test_every_local_link_of_the_site_leads_somewhere(built):
    for page in built.rglob("*.html"):
        for link in Sources(page.read_text()).links:
            parts = urlsplit(link)
            if parts.scheme or not parts.path or page.name == "404.html":
                continue
            assert (page.parent / unquote(parts.path)).resolve().exists(), f"{page.name}: {link}"
