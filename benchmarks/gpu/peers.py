"""Other libraries' augmentation of views that are already on the device, as their users would write
it.

Each function takes the views (V, N, S, S, 3) uint8 on the device. It returns a call that makes
augmented float16 views, or float32 where the library has no float16. The libraries draw their own
random numbers by MoCo v2's probabilities; crop, resize and flip are done already. A library is
imported when its function is called.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from maskco_fast.bench.peers_dali import BLUR_WINDOW, colour_and_normalise
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD

Call = Callable[[], Any]


def torchvision_v2(views: torch.Tensor) -> Call:
    """torchvision's v2 transforms, image by image: a batch would share its random numbers."""
    transform = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(BLUR_WINDOW, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float16, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = views.movedim(-1, -3)
    return lambda: [torch.stack([transform(image) for image in view]) for view in images]


def kornia(views: torch.Tensor) -> Call:
    """kornia's batched augmentation in float32, its colour operators' precision."""
    import kornia.augmentation as K

    augment = K.AugmentationSequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((BLUR_WINDOW, BLUR_WINDOW), (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_keys=["input"],
    ).to(views.device)
    images = views.movedim(-1, -3)
    return lambda: [augment(view.contiguous().float() / 255) for view in images]


def dali(views: torch.Tensor) -> Call:
    """DALI's own operators in a pipeline on the device, float16, channels first."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = views.device.type == "cuda"
    batches = [view.contiguous() for view in views]
    source = batches if on_gpu else [view.numpy() for view in batches]

    @pipeline_def(
        batch_size=views.shape[1],
        num_threads=4,
        device_id=(views.device.index or 0) if on_gpu else None,
        enable_conditionals=True,
    )
    def moco_v2() -> Any:
        device = "gpu" if on_gpu else "cpu"
        sources = fn.external_source(
            lambda: source, num_outputs=len(source), device=device, layout="HWC"
        )
        return tuple(colour_and_normalise(images, types.FLOAT16) for images in sources)

    pipeline = moco_v2()
    pipeline.build()
    return lambda: [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()]


PEERS: dict[str, Callable[[torch.Tensor], Call]] = {
    "torchvision_v2": torchvision_v2,
    "kornia": kornia,
    "dali": dali,
}
