"""Hooks of mkdocs: pages that lie outside docs/, API pages, and links that work on GitHub and in the site.

The site shows README.md and other Markdown files of the repository (`PAGES`) next to those of docs/, and an
API page for every `api/MODULE.md` in the navigation. A relative link is written as GitHub needs it; here it
becomes a link to the page of the site, to the API page of a Python file, or to a copy of a file. Images from
other servers are left out, so that showing a page sends no request to anyone else.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

DOCS = "docs/"
API = "api/"
COPIES = "files/"
STYLE = "site.css"

#: Markdown files outside docs/, by their path in the repository, with their name in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "AGENTS.md": "agents.md",
    "CHANGELOG.md": "changelog.md",
    "bench/weights/README.md": "micro-vit.md",
    "results/README.md": "results-folder.md",
    "results/reference/report/report.md": "reference-report.md",
}

#: A code block, code inside a line, or a link or image with its relative target and what follows it.
_LINK = re.compile(
    r"(?P<code>^```.*?^```$|(?<!\[)`[^`\n]+`)"
    r"|(?P<text>`[^`\n]+`)?\]\((?P<to>(?![a-z]+:|#)[^)\s#]+)(?P<rest>[^)]*)\)",
    re.DOTALL | re.MULTILINE,
)

#: An image, with the link around it if there is one.
_IMAGE = re.compile(
    r"\[!\[[^]]*\]\((?P<linked>[^)\s]+)[^)]*\)\]\([^)]*\)|!\[[^]]*\]\((?P<plain>[^)\s]+)[^)]*\)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, the API pages, and copies of the files that pages link to."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    modules = api_modules(config.nav)
    for module in modules:
        files.append(File.generated(config, api_page(module), content=f"# {module}\n\n::: {module}\n"))
    texts = {source_of(file.src_uri): file.content_string for file in files.documentation_pages()}
    files.append(File.generated(config, STYLE, abs_src_path=str(Path(__file__).with_name(STYLE))))
    for path in sorted(copied_files(texts, modules)):
        files.append(File.generated(config, COPIES + path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    here = page.file.src_uri
    return site_links(without_remote_images(markdown, here), here, api_modules(config.nav))


def api_modules(nav: Any) -> list[str]:
    """The modules that the navigation has an API page of."""
    if isinstance(nav, str):
        return [nav.removeprefix(API).removesuffix(".md")] if nav.startswith(API) else []
    entries: Iterable[Any] = nav.values() if isinstance(nav, dict) else nav or ()
    return [module for entry in entries for module in api_modules(entry)]


def api_page(module: str) -> str:
    """The page of a module, by its path in the site."""
    return f"{API}{module}.md"


def source_of(page: str) -> str:
    """The path in the repository of a page of the site."""
    sources = {name: source for source, name in PAGES.items()}
    return sources.get(page, DOCS + page)


def without_remote_images(markdown: str, page: str) -> str:
    """The text of a page without images, such as badges, that are not in the repository."""

    def kept(match: re.Match[str]) -> str:
        target = match["linked"] or match["plain"]
        remote = ":" in target or resolved(source_of(page), target).startswith("..")
        return "" if remote else match[0]

    return _IMAGE.sub(kept, markdown)


def site_links(markdown: str, page: str, modules: Iterable[str]) -> str:
    """The text of a page of the site, with its relative links changed from the repository's to the site's."""
    known = list(modules)

    def rewritten(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        target = site_path(resolved(source_of(page), match["to"]), known)
        start = posixpath.dirname(page) or "."
        return f"{match['text'] or ''}]({posixpath.relpath(target, start)}{match['rest']})"

    return _LINK.sub(rewritten, markdown)


def resolved(source: str, target: str) -> str:
    """The path in the repository that a relative link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def site_path(path: str, modules: Iterable[str]) -> str:
    """The path in the site of a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return api_page(module) if module in modules else COPIES + path


def copied_files(texts: dict[str, str], modules: Iterable[str]) -> set[str]:
    """The files outside the site's pages that links of pages lead to.

    Args:
        texts: path in the repository -> Markdown.
    """
    known = list(modules)
    targets = {resolved(source, link) for source, text in texts.items() for link in links(text)}
    return {path for path in targets if site_path(path, known) == COPIES + path and (ROOT / path).is_file()}


def links(markdown: str) -> Iterator[str]:
    """The relative targets of links and images, without those in code."""
    return (match["to"] for match in _LINK.finditer(markdown) if match["to"])
