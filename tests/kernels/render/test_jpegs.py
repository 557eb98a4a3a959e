"""Rendering of several JPEGs a call, against decoding by a library and rendering one by one."""

import numpy as np
import pytest

from maskco_fast.kernels.jpeg.decode import decode_reference
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from tests.support.images import encode, picture

SIZES = [(90, 131), (48, 48), (300, 64), (7, 200), (123, 77), (64, 600)]


def encoded():
    """A JPEG of each size, of several chroma samplings: 1 is gray, 3 truncated, 4 progressive."""
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    files = [encode(image, quality=92, subsampling=n % 3) for n, image in enumerate(images)]
    files[1] = encode(images[1][..., 0], quality=92)
    files[3] = files[3][:-10]
    files[4] = encode(images[4], progressive=True)
    return files


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("size", [32, 45, 64])
def test_a_call_equals_one_by_one(size, dtype):
    config, files = ViewConfig.maskco(size), encoded()
    sides, count = np.array(SIZES), len(SIZES)
    plans = plan(config, 3, 0, np.arange(count), sides[:, 0], sides[:, 1])
    renderer, numbers = JpegRenderer(config, dtype), np.array([5, 0, 7, 2, 3, 1])
    out, expected = (np.full((2, 9, size, size, 3), 7, renderer.buffer_dtype) for _ in range(2))
    resized, expected_resized = (np.full((2, 9, size, size, 3), 7, np.uint8) for _ in range(2))
    done = renderer.render_jpegs(files, sides, plans, numbers, out)
    np.testing.assert_array_equal(
        renderer.resize_jpegs(files, sides, plans, numbers, resized), done
    )
    assert done.tolist() == [True, True, True, False, False, True]
    for i in np.flatnonzero(done):
        image = decode_reference(files[i])
        renderer.render(image, 0, 0, plans[i], expected, numbers[i])
        renderer.resize(image, 0, 0, plans[i], expected_resized, numbers[i])
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(resized, expected_resized)


def test_views_are_the_same_wherever_the_batch_lies():
    """Batches aligned to a cache line take non-temporal stores, others ordinary ones."""
    config, data = ViewConfig.maskco(64), encode(picture(90, 131, 0))
    sides, numbers = np.array([[90, 131]]), np.array([1])
    plans = plan(config, 0, 0, numbers, sides[:, 0], sides[:, 1])
    for dtype in ("float32", "float16", "uint8"):
        renderer = JpegRenderer(config, dtype)
        count = 2 * 3 * 64 * 64 * 3
        memory = np.zeros(count + 128, renderer.buffer_dtype)
        begin = -memory.ctypes.data % 64 // memory.itemsize
        batches = [memory[begin + k : begin + k + count].reshape(2, 3, 64, 64, 3) for k in (0, 1)]
        made = []
        for batch in batches:
            batch[:] = 0
            assert renderer.render_jpegs([data], sides, plans, numbers, batch).all()
            made.append(batch.copy())
        np.testing.assert_array_equal(*made)
        assert made[0].any()


def test_plans_that_do_not_fit_are_left_undone():
    config, data = ViewConfig.maskco(32), encode(picture(90, 131, 0))
    plans = plan(config, 0, 0, np.arange(1), np.array([900]), np.array([1310]))
    renderer, out = JpegRenderer(config, "uint8"), np.full((2, 1, 32, 32, 3), 7, np.uint8)
    sides, numbers = np.array([[90, 131]]), np.zeros(1, np.int64)
    assert not renderer.render_jpegs([data], sides, plans, numbers, out).any()
    assert (out == 7).all()
    with pytest.raises(ValueError, match=r"`position` must be in 0\.\.0"):
        renderer.render_jpegs([data], sides, plans, numbers + 1, out)
    with pytest.raises(ValueError, match="1 files need `sides`"):
        renderer.render_jpegs([data], np.repeat(sides, 2, 0), plans, numbers, out)
    with pytest.raises(ValueError, match="`sides` must be C-contiguous int64"):
        renderer.render_jpegs([data], sides.astype(np.int32), plans, numbers, out)
