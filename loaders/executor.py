"""One thread's way from encoded bytes to rendered views, for the loaders that decode in threads of their own."""

import numpy as np

from ..kernels.render import Renderer
from .decode import Decoder
from .loader import Loader
from .regions import shrunk
from .request import Request


class Executor:
    """Decodes and renders samples, with a decoder and working memory of its own: make one a thread."""

    def __init__(self, loader: Loader) -> None:
        config = loader.config
        self._loader = loader
        self._views = len(config.views.views)
        self._decode = Decoder(fast=config.decode == "fast").decode_scaled
        renderer = Renderer(config.views, str(config.dtype).removeprefix("torch."))
        self._render = renderer.resize if config.seam else renderer.render

    def __call__(self, request: Request, n: int, pixels: np.ndarray) -> None:
        """Render sample `n` of a request into `pixels[:, n]`; one that does not decode is replaced."""
        image, shrink = self._loader._fetch(request, n, self._decode)
        row = request.rows[n]
        if shrink > 1:
            row = shrunk(row, self._views, shrink, image.shape[0], image.shape[1])
        self._render(image, 0, 0, row, pixels, n)
