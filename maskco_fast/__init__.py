"""MaskCo pre-training on web-scale image shards, with data loaders that keep the GPU fed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskco_fast.loaders import ViewConfig, decode_jpeg, make_loader

__version__ = "0.2.0"
__all__ = ["ViewConfig", "__version__", "decode_jpeg", "make_loader"]


def __getattr__(name: str) -> Any:
    """Import the loaders on first use: `maskco-fast --help` answers without torch."""
    if name not in ("ViewConfig", "decode_jpeg", "make_loader"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maskco_fast import loaders

    return getattr(loaders, name)
