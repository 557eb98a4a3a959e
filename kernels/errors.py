"""The errors that a user can fix: the command line prints each as one line; anything else keeps its
traceback."""


class MaskCoError(Exception):
    """Base class of every error that this package raises on purpose: bad input, a full disk, a lost
    peer."""


class InvalidInput(MaskCoError, ValueError):
    """An argument, option or file has a value that cannot work. The message names it, its value and
    what must hold."""


class MissingPackage(MaskCoError, ImportError):
    """An optional package is not installed. The message holds the command that installs it."""
