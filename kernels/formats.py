"""Output formats: the table of dtypes that views can be rendered to.

Elements have at most 4 bytes. A new dtype needs a row here, a branch in `augment/numba.py`
(`_encode`) and, for GPUs, one in `augment/triton_kernels.py` (`_finish`).
"""

from dataclasses import dataclass

import numpy as np

FLOAT32, FLOAT16, BFLOAT16, UINT8 = range(4)
"""Codes of the formats in compiled kernels."""


@dataclass(frozen=True)
class OutputFormat:
    """One dtype that views can be rendered to."""

    name: str
    """The name on command lines, which is torch's name of the dtype, such as "float32"."""
    code: int
    """Code of the format in compiled kernels."""
    storage: type[np.generic]
    """NumPy type of the buffers in host memory: uint16 for float16, which Numba lacks on
    CPUs, and for bfloat16, which NumPy lacks."""
    triton: str
    """Triton's name of the dtype in kernel signatures."""
    half_unit: float
    """Largest relative rounding error, half a unit in the last place; 0 for no rounding."""

    @property
    def normalised(self) -> bool:
        """Whether views are normalised and masked. Integers hold levels in 0..255 instead."""
        return self.code != UINT8


FORMAT_NAMES: dict[str, OutputFormat] = {
    form.name: form
    for form in (
        OutputFormat("float32", FLOAT32, np.float32, "fp32", 0.0),
        OutputFormat("float16", FLOAT16, np.uint16, "fp16", 2.0**-11),
        OutputFormat("bfloat16", BFLOAT16, np.uint16, "bf16", 2.0**-8),
        OutputFormat("uint8", UINT8, np.uint8, "u8", 0.0),
    )
}
"""Formats by name."""
