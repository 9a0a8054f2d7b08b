"""Names of images and classes: compared in one form, and shown so that a difference is seen."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """A name in the form that is compared: a file system may keep "é" as one character or as two."""
    return unicodedata.normalize("NFC", name)


def visible(name: str) -> str:
    """A name as messages show it: with quotes and escapes where something in it is not seen otherwise."""
    return name if name.isprintable() and name == name.strip() else ascii(name)
