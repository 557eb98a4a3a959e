"""Adapter of `maskco_fast.decode_jpeg` for https://github.com/ternaus/imread_benchmark.

Copy this file to `imread_benchmark/decoders/` there, and add to its pyproject.toml, in the table
`[project.entry-points."imread_benchmark.decoders"]`:

    maskco-fast = "imread_benchmark.decoders.maskco_fast_decoder:MaskCoFastDecoder"

and maskco-fast to the optional dependencies of the group `mainstream`.
"""

import numpy as np
from imread_benchmark.decoders import BaseDecoder


class MaskCoFastDecoder(BaseDecoder):  # type: ignore[misc]
    """maskco-fast: compiled by Numba, pixels equal to libjpeg-turbo's, on the calling thread."""

    name = "maskco-fast"
    package_name = "maskco-fast"

    def decode(self, data: bytes) -> np.ndarray:
        """Decode JPEG bytes to (H, W, 3) uint8 RGB."""
        from maskco_fast import decode_jpeg

        return decode_jpeg(data)
