"""Options as they are typed, `name:option=value+option=value`, and how a value's text is read.

A plus separates options and a comma names; neither does so inside a quoted value or a list. A value's text is
read according to the type of the field that it is for: a field for text or a path gets the text itself, any
other field the value that the text is in TOML.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from methods.errors import UsageError, one_line
from methods.hyper import BITS, unfit

MAX_BITS = 4096  # of an integer in a text; Python itself writes none of more than 4300 digits

#: The end of a value that starts with one of these signs.
CLOSING = {'"': '"', "'": "'", "[": "]"}


class TypedText(str):
    """A value as it was typed; the field that it is for decides how it is read."""

    __slots__ = ()


def split_list(text: str) -> list[str]:
    """The parts between commas.

    >>> split_list('ncm,image-folder:path="a,b",c:layers=[0, 1]')
    ['ncm', 'image-folder:path="a,b"', 'c:layers=[0, 1]']
    """
    return [part.strip() for part in split_outside(text, ",") if part.strip()]


def split_outside(text: str, separator: str) -> Iterator[str]:
    """The parts of a text between separators that are outside of quoted values and of lists."""
    start = position = 0
    while position < len(text):
        if text[position] == separator:
            yield text[start:position]
            start = position + 1
        opens = text[position] in CLOSING and text[:position].rstrip()[-1:] in ("=", "")
        position = _end_of_value(text, position) if opens else position + 1
    yield text[start:]


def _end_of_value(text: str, start: int) -> int:
    """The position after the quoted value or the list that starts here; after its first sign if none ends."""
    closing, depth = CLOSING[text[start]], 0
    position = start + 1
    while position < len(text):
        sign = text[position]
        if sign == "\\" and closing == '"':
            position += 1
        elif sign == closing and depth == 0:
            return position + 1
        elif closing == "]":
            depth += (sign == "[") - (sign == "]")
        position += 1
    return start + 1


def parse_options(text: str) -> list[tuple[str, TypedText]]:
    """`gate=none+rank=8` -> the options in their order.

    Raises:
        UsageError: if a part is no assignment.
    """
    options: list[tuple[str, TypedText]] = []
    for part in filter(None, split_outside(text, "+")):
        if options and "=" not in part:
            key, value = options[-1]
            raise UsageError(
                f"cannot read '{one_line(part)}'; legal: option=value. If it belongs to the value before it, "
                f"quotes keep them together: {one_line(key)}={json.dumps(one_line(f'{value}+{part}'))}"
            )
        options.append(parse_assignment(part))
    return options


def parse_assignment(text: str) -> tuple[str, TypedText]:
    """`rank=8` -> ("rank", "8").

    Raises:
        UsageError: if it is no assignment.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"cannot read '{one_line(text)}'; legal: option=value")
    return key.strip(), TypedText(value.strip())


def as_typed(value: str) -> str:
    """The text of an option's value, in quotes where it would otherwise be cut.

    >>> as_typed("a b"), as_typed("a+b")
    ('a b', '"a+b"')
    """
    cut = re.search(r"""[+,]|^['"\[]""", value)
    # JSON writes U+007F as it is, and TOML, which the text is read as, does not take it.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if cut else value


# ---- values ------------------------------------------------------------------------------------


def read_options(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The values, with each text as typed read for its field; those without a field are kept.

    Raises:
        UsageError: for a quoted value that is not closed, or whose escapes are none.
    """
    return {
        name: _read(name, value, fields[name].annotation) if name in fields else value
        for name, value in values.items()
    }


def _read(name: str, value: Any, annotation: Any) -> Any:
    if not takes_text(annotation):
        return parse_value(value) if isinstance(value, TypedText) else value
    if isinstance(value, date):  # a config file's `path = 2024-01-05`
        return value.isoformat()
    return unquote(name, value) if isinstance(value, TypedText) else value


def takes_text(annotation: Any) -> bool:
    """Whether every value of a type is a text or a path, or None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return takes_text(get_args(annotation)[0])
    if origin is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return all(map(takes_text, members))
    return isinstance(annotation, type) and issubclass(annotation, str | PurePath)


def unquote(name: str, text: str) -> str:
    """The text without the quotes around it, if it has any.

    Raises:
        UsageError: if the quotes are not those of a text in TOML.
    """
    if text[:1] not in ("'", '"'):
        return str(text)
    value = parse_value(text)
    if isinstance(value, str) and value != text:
        return value
    raise UsageError(
        f"cannot read {one_line(name)}={one_line(text)}: a quoted value ends with the sign it starts with; "
        'in double quotes a backslash is written twice ("C:\\\\data"), in single quotes once'
    )


def parse_value(text: str) -> Any:
    """A number, true/false, a quoted text or a list as TOML writes them; anything else is the text itself."""
    try:
        content = loads(f"value = {text}", MAX_BITS)
    except ValueError:
        return str(text)
    # A text of several lines may go on with other keys.
    return content["value"] if len(content) == 1 else str(text)


def loads(text: str, bits: int = BITS) -> dict[str, Any]:
    """The content of a TOML text.

    Raises:
        ValueError: if it is not TOML, or an integer is too large or the nesting too deep.
    """
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables are nested too deep") from None
    if problem := unfit(content, bits):
        raise ValueError(problem)
    return content
