"""One thread's way from encoded bytes to rendered views, for the loaders that decode in threads of
their own."""

from collections.abc import Iterable

import numpy as np

from ...kernels import headers
from ...kernels.formats import FORMATS
from ...kernels.render_jpegs import JpegRenderer
from ..loader import Loader
from ..regions import scale_crops
from ..request import Request
from ..shards.decode import Decoder

SAMPLES_PER_CALL = 4
"""Samples best handed over at once: few enough for threads to share a batch, enough to make
Python's part small."""


class SampleRenderer:
    """Decodes and renders samples, with a decoder and working memory of its own: make one a thread.

    JPEGs go through our own decoder, which takes the GIL once for all that are handed over.
    Whatever it leaves, and what fast decoding makes smaller, goes one by one through a library's.
    """

    def __init__(self, loader: Loader) -> None:
        config = loader.config
        self._loader = loader
        self._views = len(config.views.views)
        self._decode = Decoder(fast=config.decode == "fast").decode_scaled
        renderer = JpegRenderer(config.views, FORMATS[config.dtype].name)
        renderer.whole = config.decode == "exact"
        self._render, self._render_jpegs = renderer.render, renderer.render_jpegs
        if config.seam:
            self._render, self._render_jpegs = renderer.resize, renderer.resize_jpegs

    def __call__(self, request: Request, numbers: Iterable[int], pixels: np.ndarray) -> None:
        """Render samples `numbers` of a request into `pixels[:, numbers]`; one that does not decode
        is replaced."""
        left = []
        together, files = [], []
        dataset, quarantine = self._loader.dataset, self._loader.quarantine
        for n in numbers:
            index = request.indices[n]
            plain = dataset.samples["format"][index] == headers.JPEG and request.shrinks[n] == 1
            if plain and index not in quarantine:
                together.append(n)
                files.append(dataset.read(index))
            else:
                left.append(n)
        if together:
            chosen = np.array(together)
            samples = dataset.samples[request.indices[chosen]]
            sides = np.stack([samples["height"], samples["width"]], 1).astype(np.int64)
            done = self._render_jpegs(files, sides, request.rows[chosen], chosen, pixels)
            left.extend(chosen[~done].tolist())
        for n in left:
            self._render_one(request, n, pixels)

    def _render_one(self, request: Request, n: int, pixels: np.ndarray) -> None:
        image, shrink = self._loader._fetch(request, n, self._decode)
        row = request.rows[n]
        if shrink > 1:
            row = scale_crops(row, self._views, shrink, image.shape[0], image.shape[1])
        self._render(image, 0, 0, row, pixels, n)
