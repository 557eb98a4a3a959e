"""Fields: other members of a sample, such as captions and metadata, that batches bring along."""

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..kernels.errors import InvalidInput


def check_fields(fields: Iterable[str] | None) -> tuple[str, ...]:
    """The option `fields`, validated: suffixes without a leading dot. Raises InvalidInput."""
    if fields is None:
        return ()
    chosen = (fields,) if isinstance(fields, str) else tuple(fields)
    for field in chosen:
        if not isinstance(field, str) or not field.strip(".") or "/" in field:
            raise InvalidInput(
                f"`fields` must be suffixes of members, such as ('txt', 'json'), got {field!r}"
            )
    listed = tuple(field.removeprefix(".").lower() for field in chosen)
    if len(set(listed)) < len(listed):
        raise InvalidInput(f"`fields` must name each suffix once, got {', '.join(listed)}")
    return listed


def decode_field(field: str, data: bytes) -> Any:
    """The value of a member, by the last part of its suffix: text, JSON, a class or an array.

    | suffix | value |
    |---|---|
    | txt, text | str, of UTF-8 |
    | json | what it holds |
    | cls | int where it is a whole number, else str |
    | npy | NumPy array |
    | others | bytes |

    Raises ValueError with the reason where the member is damaged.
    """
    kind = field.rpartition(".")[2]
    try:
        if kind in ("txt", "text"):
            return data.decode("utf-8-sig")
        if kind == "json":
            return json.loads(data)
        if kind == "cls":
            text = data.decode("utf-8-sig").strip()
            return int(text) if text.removeprefix("-").isdecimal() else text
        if kind == "npy":
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, RecursionError, EOFError, OSError) as error:
        raise ValueError(f"its .{field} member is damaged, so the field is None") from error
    return data
