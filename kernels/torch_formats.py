"""The output formats by torch dtype; a module of its own, since kernels compile without torch."""

import torch

from .formats import FORMAT_NAMES, OutputFormat

FORMATS: dict[torch.dtype, OutputFormat] = {
    getattr(torch, name): form for name, form in FORMAT_NAMES.items()
}
"""Formats by the dtype of the tensors that users get."""
