"""Text files that users write, in whatever encoding their editor marks."""

from __future__ import annotations

import codecs
from pathlib import Path

#: Byte-order mark at the start of a file -> encoding; that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path) -> str:
    """The text of a file: of the encoding that a mark at its start names, or UTF-8; line ends as they are.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not text of that encoding, saying which line is not.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"line {line} is not {name} text; save the file as UTF-8") from None
