"""The reference loader: Pillow and torchvision execute the plan, one sample at a time.

Slow and obvious: the other loaders are tested against it.
"""

from collections.abc import Generator, Iterator

import numpy as np
import torch

from ...kernels.augment.reference import (
    augment_reference,
    finish_reference,
    light_reference,
)
from ...kernels.render.resize import resize_reference
from ...kernels.torch_formats import FORMATS
from ..loader import Loader
from ..request import Rendered, Request
from ..shards.decode import Decoded, decode_pillow, require_size


class ReferenceLoader(Loader):
    """Batches rendered in the calling thread; `threads`, `prefetch` and `decode` are ignored."""

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        config = self.config
        layout = config.views.layout
        for request in requests:
            count = len(request.indices)
            memory = torch.empty(count * layout.elements, dtype=config.pixel_dtype)
            views = layout.views(memory)
            for n in range(count):
                image = self._fetch(request, n, _decode).image
                plan = request.rows[n].view(config.views.plan_dtype)[0]
                for v in range(len(views)):
                    views[v][n] = self._render(image, plan, v)
            yield Rendered(request, views, memory)

    def _render(self, image: np.ndarray, plan: np.void, v: int) -> torch.Tensor:
        """View `v` of one image, (height, width, 3)."""
        config = self.config
        view, settings = plan["views"][v], config.views.views[v]
        levels = resize_reference(
            image,
            view["crop"],
            config.views.layout.sizes[v],
            bool(view["flip"]),
            window=view["window"],
            bicubic=bool(view["bicubic"]),
        )
        if config.seam:
            return torch.from_numpy(levels)
        levels = augment_reference(levels, view)
        if not FORMATS[config.dtype].normalised:
            return torch.from_numpy(light_reference(levels, view["lighting"]))
        masked_box = plan["masked_box"] if config.views.mask and v == 0 else None
        finished = finish_reference(
            levels, masked_box, view["lighting"], settings.mean, settings.std
        )
        return torch.as_tensor(finished).to(config.dtype)


def _decode(data: bytes, sample: np.void, *_: object) -> Decoded:
    """`Decoder.decode_scaled`'s signature, with Pillow alone."""
    return Decoded(require_size(decode_pillow(data), sample))
