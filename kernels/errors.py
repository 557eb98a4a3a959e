"""Errors raised on purpose. The command line prints them as one line; others keep a traceback."""


class MaskCoError(Exception):
    """Base class of all deliberate errors: bad input, a full disk, a lost peer."""


class InvalidInput(MaskCoError, ValueError):
    """An argument, option or file has an invalid value. The message names it and what must hold."""


class MissingPackage(MaskCoError, ImportError):
    """An optional package is not installed. The message gives the command that installs it."""
