"""The Markdown report as one self-contained HTML page: no network, no script, no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Container, Iterator, Sequence
from itertools import chain, count, pairwise
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports.text import slug

#: Kinds of images that a page can contain, by the suffix of the file.
MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}

#: The browser loads and runs nothing, whatever the text contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --pale: #59636e; --line: #d1d9e0;
  --shade: #f6f8fa; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --pale: #9198a1; --line: #3d444d; --shade: #151b23;
    --link: #6cb6ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 74rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 0.8rem; }
h1 { margin-top: 1rem; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: 0.3rem; }
p, ul { max-width: 46rem; }
a { color: var(--link); }
nav { border-left: 3px solid var(--line); padding-left: 0.5rem; }
nav ul { margin: 0; padding-left: 1.1rem; }
code { background: var(--shade); border-radius: 4px; padding: 0.1em 0.3em; font-size: 0.9em; }
blockquote { margin: 1rem 0; padding: 0.1rem 1rem; border-left: 4px solid #bf8700; background: var(--shade); }
figcaption { color: var(--pale); font-size: 0.9rem; }
figure { margin: 1.2rem 0; }
figure > div, .table { overflow-x: auto; }
img { display: block; max-width: max(100%, 34rem); height: auto; padding: 0.4rem;
  background: #fff; border-radius: 4px; }
.table { margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { vertical-align: bottom; overflow-wrap: normal; }
td { overflow-wrap: break-word; max-width: 30rem; }
tr > :first-child { position: sticky; left: 0; background: var(--paper); }
thead th, tr > th:first-child { background: var(--shade); }
td[style*="right"] { white-space: nowrap; }
"""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def page(markdown: str, read: Callable[[str], bytes]) -> str:
    """The page with its images embedded. Equal text and images give equal pages.

    Links that lead out of the page become plain text, because the report's other files do not move with the
    page; an address on the network is written after the text.

    Args:
        markdown: CommonMark with tables; HTML in it is shown as text.
        read: the bytes of an image, by its path in the text.

    Raises:
        ValueError: if an image is of a kind that is not in `MEDIA_TYPES`.
        OSError: if `read` cannot read an image.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = _figures(parser.parse(markdown))
    for token in tokens:
        token.children = [_embedded(child, read) for child in _unlinked(token.children or [])]
    headings = _headings(tokens)
    title = next((_plain(inline) for _, _, inline in headings), "Report")
    return PAGE.format(
        policy=html.escape(POLICY),
        title=html.escape(title),
        style=STYLE,
        body=_body(parser, tokens, parser.render(_contents(headings))),
    )


def _body(parser: MarkdownIt, tokens: Sequence[Token], contents: str) -> str:
    """The text, with the table of contents before the first heading of the second level."""
    start = next((i for i, token in enumerate(tokens) if token.tag == "h2"), len(tokens))
    parts = [
        parser.renderer.render(list(_framed(part)), parser.options, {})
        for part in (tokens[:start], tokens[start:])
    ]
    return f'{parts[0]}<nav aria-label="Contents">\n{contents}</nav>\n{parts[1]}'


# ---- images and links --------------------------------------------------------------------------


def _figures(tokens: Sequence[Token]) -> list[Token]:
    """Paragraphs that are an image become figures, with the alternative text as their caption.

    The paragraph after an image is left out if it links to files: it repeats the caption for the Markdown
    report, with links to the figure's files.
    """
    starts = [i for i, token in enumerate(tokens) if token.type == "paragraph_open"]
    figures = [i for i in starts if [child.type for child in tokens[i + 1].children or []] == ["image"]]
    for i in figures:
        tokens[i].tag = tokens[i + 2].tag = "figure"
        tokens[i + 1].children = list(_captioned(*(tokens[i + 1].children or [])))
    below = {i + 3 for i in figures} & set(starts)
    dropped = {i + j for i in below if _links_to_files(tokens[i + 1]) for j in range(3)}
    return [token for i, token in enumerate(tokens) if i not in dropped]


def _captioned(image: Token) -> Iterator[Token]:
    yield from [Token("frame_open", "div", 1), image, Token("frame_close", "div", -1)]
    yield from [Token("caption_open", "figcaption", 1), *(image.children or [])]
    yield Token("caption_close", "figcaption", -1)


def _links_to_files(inline: Token) -> bool:
    links = [child for child in inline.children or [] if child.type == "link_open"]
    return any(not urlsplit(_address(link)).scheme for link in links)


def _address(link: Token) -> str:
    return str(link.attrs.get("href", ""))


def _unlinked(children: Sequence[Token]) -> Iterator[Token]:
    """The tokens without links, which never nest. An address on the network is added if the text differs."""
    address, text = "", ""
    for child in children:
        if child.type == "link_open":
            address, text = _address(child), ""
        elif child.type == "link_close":
            if urlsplit(address).scheme and text != address:
                yield Token("text", "", 0, content=f" ({address})")
        else:
            text += child.content
            yield child


def _embedded(token: Token, read: Callable[[str], bytes]) -> Token:
    if token.type == "image":
        token.attrs["src"] = _data_uri(unquote(str(token.attrs["src"])), read)
    return token


def _data_uri(path: str, read: Callable[[str], bytes]) -> str:
    kind = PurePosixPath(path).suffix
    if kind not in MEDIA_TYPES:
        raise ValueError(f"cannot embed the image '{path}'; legal kinds: {', '.join(MEDIA_TYPES)}")
    return f"data:{MEDIA_TYPES[kind]};base64,{base64.b64encode(read(path)).decode('ascii')}"


# ---- headings and tables -----------------------------------------------------------------------

#: Level, id and text of a heading.
_Heading = tuple[int, str, Token]


def _headings(tokens: Sequence[Token]) -> list[_Heading]:
    """The headings in order; each gets a unique id."""
    headings: dict[str, _Heading] = {}
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            name = _free(slug(_plain(inline)), headings)
            token.attrs["id"] = name
            headings[name] = (int(token.tag[1:]), name, inline)
    return list(headings.values())


def _free(name: str, taken: Container[str]) -> str:
    """The name, with a number after it if it is taken."""
    names = chain([name], (f"{name}-{i}" for i in count(2)))
    return next(candidate for candidate in names if candidate not in taken)


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])


def _contents(headings: Sequence[_Heading]) -> str:
    """A Markdown list of links to the headings of the second and third level."""
    return "\n".join(
        f"{'  ' * (level - 2)}- [{inline.content}](#{name})"
        for level, name, inline in headings
        if level in (2, 3)
    )


def _framed(tokens: Sequence[Token]) -> Iterator[Token]:
    """Each table in a box that scrolls, also by keyboard, and is labelled by the heading above it."""
    heading = ""
    for token in tokens:
        heading = str(token.attrs.get("id", heading))
        if token.type == "table_open":
            label: dict[str, str | int | float] = {
                "class": "table",
                "role": "region",
                "tabindex": "0",
                "aria-labelledby": heading,
            }
            yield Token("frame_open", "div", 1, attrs=label, block=True)
        yield token
        if token.type == "table_close":
            yield Token("frame_close", "div", -1, block=True)
