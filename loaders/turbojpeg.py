"""The system's libturbojpeg, where there is one: decodes straight into a thread's own buffer, without the GIL."""

import ctypes
import functools

import numpy as np

from ..kernels import headers
from .decode import Decoder

_LIBRARIES = ("libturbojpeg.so.0", "libturbojpeg.so")
_RGB, _EXACT = 0, 4096  # TJPF_RGB, TJFLAG_ACCURATEDCT (turbojpeg.h)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """libturbojpeg with its functions' types, or None where the system has none."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:  # not installed under this name
            continue
        pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
        library.tjInitDecompress.restype = pointer
        library.tjDestroy.argtypes = [pointer]
        facts = [ctypes.POINTER(integer)] * 4
        library.tjDecompressHeader3.argtypes = [pointer, ctypes.c_char_p, size, *facts]
        library.tjDecompress2.argtypes = [pointer, ctypes.c_char_p, size, pointer, *[integer] * 5]
        return library
    return None


class TurboDecoder(Decoder):
    """`Decoder`, by the system's libturbojpeg: the same pixels, and Pillow's judgement wherever it warns or fails."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library
        self._handle = library.tjInitDecompress()
        if not self._handle:
            raise MemoryError("libturbojpeg gives no decompressor")
        self._facts = [ctypes.c_int() for _ in range(4)]

    @classmethod
    def open(cls) -> "TurboDecoder | None":
        """A decoder for one thread, or None where the system has no libturbojpeg."""
        library = _library()
        return None if library is None else cls(library)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.tjDestroy(self._handle)

    def decode(self, data: bytes, sample: np.void) -> np.ndarray:
        """(H, W, 3) uint8, C-contiguous, valid until the next call; see `Decoder.decode`."""
        height, width = int(sample["height"]), int(sample["width"])
        size = 3 * height * width
        if sample["format"] != headers.JPEG or size > self.KEPT:
            return super().decode(data, sample)
        if len(self._buffer) < size:
            self._buffer = np.empty(size * 3 // 2, np.uint8)
        library, handle, (found_width, found_height, *others) = self._library, self._handle, self._facts
        if library.tjDecompressHeader3(handle, data, len(data), found_width, found_height, *others) != 0:
            return super().decode(data, sample)
        if (found_height.value, found_width.value) != (height, width):
            return super().decode(data, sample)
        target = self._buffer.ctypes.data
        if library.tjDecompress2(handle, data, len(data), target, width, 0, height, _RGB, _EXACT) != 0:
            return super().decode(data, sample)  # an error or a warning
        return self._buffer[:size].reshape(height, width, 3)
