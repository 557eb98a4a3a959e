"""Text from outside, such as names in a crawl, made safe to print."""


def printable(text: str) -> str:
    """The text with escapes in place of characters that do not print, in one line.

    Terminals obey control characters, and some others reverse or hide what stands beside them.
    Bytes that are not UTF-8 (surrogates, from Python's "surrogateescape") are written as `\\xNN`.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(ord(one)) for one in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
