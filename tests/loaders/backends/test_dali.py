"""The DALI loader's own parts; the contract is tested in test_conformance."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from maskco_fast.loaders import LoaderConfig, View, ViewConfig, make_loader
from maskco_fast.loaders.request import Request
from tests.support.images import encode, picture, skip_without_packages, write_tar

VIEWS = ViewConfig.maskco(48)


def test_importing_the_module_leaves_dali_alone():
    code = (
        "import sys, maskco_fast.loaders.backends.dali as _; "
        "print([name for name in sys.modules if name.startswith('nvidia')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_an_absent_dali_is_named_with_its_extra(make_shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=r"pip install 'maskco-fast\[dali\]'"):
        make_loader(make_shards(1, 4), 2, views=VIEWS, backend="dali")


@pytest.fixture
def dali():
    """The modules under test; skipped where DALI is not installed."""
    skip_without_packages("dali")
    from maskco_fast.loaders.backends import dali as loader
    from maskco_fast.loaders.backends import dali_graph as graph

    return loader, graph


def make_samples(graph, rows, encoded, views=VIEWS):
    count = len(rows)
    config = LoaderConfig(batch_size=count, views=views)
    return graph.Samples(
        Request.make(config, 0, np.arange(count), rows), encoded, np.zeros(count, bool)
    )


def run_once(pipeline_graph, samples):
    """The views of one batch."""

    def source(iteration):
        if iteration:
            raise StopIteration
        return samples

    return pipeline_graph.views(samples, pipeline_graph.pipeline(source).run())


def plan_of(count, height, width, views=VIEWS):
    from maskco_fast.kernels.plan import plan

    return plan(views, 0, 0, np.arange(count), np.full(count, height), np.full(count, width))


def test_pixels_from_the_host_reach_the_kernel_as_they_are(dali, tmp_path):
    """Pillow decodes PNGs: DALI's views of their regions equal the native loader's bit for bit."""
    members = {f"{n}.png": encode(picture(40 + 9 * n, 90 - 7 * n, n), "png") for n in range(8)}
    # Pixels that look like line feeds and comments in a PPM's header.
    members["lines.png"] = encode(np.full((50, 60, 3), 10, np.uint8), "png")
    members["hashes.png"] = encode(np.full((50, 60, 3), 35, np.uint8), "png")
    shard = write_tar(tmp_path / "png.tar", members)
    batches = []
    for backend in ("dali", "native"):
        with make_loader(shard, 5, views=VIEWS, backend=backend) as loader:
            batches.append(list(loader))
    for mine, theirs in zip(*batches, strict=True):
        for view, truth in zip(mine.views, theirs.views, strict=True):
            assert torch.equal(view, truth)


def test_a_jpeg_that_dali_refuses_is_decoded_on_the_host(dali, make_shards, monkeypatch):
    """DALI refuses damaged Huffman tables; here the host's decoder is one that repairs them."""
    loader_module, _ = dali
    shards = make_shards(1, 16)
    with make_loader(shards, 4, views=VIEWS, backend="native") as loader:
        truth = list(loader)
    loader = make_loader(shards, 4, views=VIEWS, backend="dali", prefetch=2)
    read, decode = loader.dataset.read, loader_module.Decoder.decode

    repaired = {}

    def read_odd(index):
        data = read(index)
        if index not in (2, 9, 10):
            return data
        table = data.index(b"\xff\xc4") + 5
        damaged = data[:table] + b"\xff" * 16 + data[table + 16 :]
        repaired[damaged] = data
        return damaged

    def decode_odd(self, data, sample):
        return decode(self, repaired.get(data, data), sample)

    monkeypatch.setattr(loader.dataset, "read", read_odd)
    monkeypatch.setattr(loader_module.Decoder, "decode", decode_odd)
    with loader:
        mine = list(loader)
        assert not loader.quarantine.entries
        assert vars(loader)["_refused"] == {2, 9, 10}
        loader.set_epoch(0)
        again = list(loader)
    for one, two, three in zip(mine, again, truth, strict=True):
        assert torch.equal(one.sample_id, three.sample_id)
        # In the second epoch the host decodes them from the start, to the same pixels.
        assert torch.equal(one.query, two.query)
        assert (one.query - three.query).abs().mean() <= 0.02


def test_a_failure_that_no_image_explains_is_raised(dali, make_shards, monkeypatch):
    _, graph = dali
    loader = make_loader(make_shards(1, 8, bad=(1,)), 8, views=VIEWS, backend="dali")
    monkeypatch.setattr(graph.Probe, "decodes", lambda *_: True)
    with pytest.raises(RuntimeError, match="although DALI decodes each image"):
        list(loader)


def test_errors_come_in_their_turn(dali, make_shards, monkeypatch):
    loader = make_loader(make_shards(1, 20), 4, views=VIEWS, backend="dali", shuffle=False)
    read = loader.dataset.read

    def fail(index):
        if index == 13:
            raise EOFError("gone")
        return read(index)

    monkeypatch.setattr(loader.dataset, "read", fail)
    seen: list[list[int]] = []
    with pytest.raises(EOFError, match="gone"):
        seen.extend(batch.index.tolist() for batch in loader)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert loader.state_dict()["consumed"] == 12


def test_a_crop_outside_of_what_was_decoded_is_an_error(dali):
    """DALI's Numba functions swallow exceptions, and the kernels check no bounds."""
    _, graph = dali
    rows = plan_of(2, 60, 60)
    samples = make_samples(
        graph, rows, [np.frombuffer(encode(picture(60, 60, n)), np.uint8) for n in range(2)]
    )
    samples.regions[1, 2] -= 1
    host = graph.HostGraph(LoaderConfig(batch_size=2, views=VIEWS))
    with pytest.raises(RuntimeError, match="sample 1 was not rendered: a crop lies outside"):
        run_once(host, samples)


SQUARES = (
    View(short_side=55, position="centre", flip_probability=0.0),
    View(short_side=60, interpolation="bicubic"),
)
"""Parts of a resized image, whose filter reads around what the view shows."""
UNEQUAL = (View(), View(size=(24, 40), short_side=45), View(size=(40, 24)))


@pytest.mark.parametrize(
    "wanted",
    [VIEWS, ViewConfig(views=SQUARES, size=48), ViewConfig(views=UNEQUAL, size=48)],
    ids=["crops", "squares", "unequal"],
)
@pytest.mark.parametrize("kind", ["host", "device", "device, decoding too"])
def test_the_seams_values_by_the_cpus_operators(dali, kind, wanted):
    """Views at the seam are within 1 level of the reference; the host cut out one region.

    Scaled down to less than half, DALI's own resize, which rounds its axes in another order, is
    within 2.
    """
    worst = 2 if kind != "host" and wanted.views == UNEQUAL else 1
    from maskco_fast.kernels.render.resize import resize_reference

    _, graph = dali
    images = [picture(70, 110, n) for n in range(6)]
    rows = plan_of(6, 70, 110, wanted)
    samples = make_samples(
        graph, rows, [np.frombuffer(encode(image, "png"), np.uint8) for image in images], wanted
    )
    y, x, height, width = samples.regions[4].tolist()
    samples.encoded[4] = graph.encode_lossless(images[4][y : y + height, x : x + width])
    samples.cut[4] = True
    config = LoaderConfig(batch_size=6, views=wanted, device="cuda")
    if kind == "host":
        views = run_once(graph.HostGraph(config), samples)
    else:
        views = run_once(
            graph.DeviceGraph(config, None, decode_on_device=kind != "device"), samples
        )
    for n, planned in enumerate(rows.view(wanted.plan_dtype)[:, 0]["views"]):
        for v, size in enumerate(wanted.layout.sizes):
            view = planned[v]
            truth = resize_reference(
                images[n],
                view["crop"],
                size,
                bool(view["flip"]),
                window=view["window"],
                bicubic=bool(view["bicubic"]),
            )
            difference = np.abs(views[v][n].numpy().astype(int) - truth)
            assert difference.max() <= worst
            assert difference.mean() <= 0.3


@pytest.mark.parametrize("decode_on_device", [False, True])
def test_the_device_graph_is_defined_on_the_device(dali, decode_on_device):
    """DALI accepts every operator with its arguments for the right device, also without CUDA."""
    from nvidia.dali import Pipeline, fn

    _, graph = dali
    config = LoaderConfig(batch_size=2, views=VIEWS, device="cuda")
    device_graph = graph.DeviceGraph(config, 0, decode_on_device=decode_on_device)
    samples = make_samples(graph, plan_of(2, 60, 60), [np.zeros(1, np.uint8)] * 2)
    assert len(device_graph.arrays(samples)) == device_graph.inputs_count
    with Pipeline(2, 1, 0):
        inputs = fn.external_source(lambda _: [], num_outputs=device_graph.inputs_count)
        views = device_graph.define(list(inputs))
    assert [view.device for view in views] == ["gpu", "gpu"]


def test_many_views_and_other_depths(dali, make_shards):
    """A DALI Numba function has at most six outputs; ours makes one view per call."""
    shards, views = make_shards(1, 12), ViewConfig.moco_v2(48, views=7)
    epochs = []
    for prefetch in (1, 4):
        with make_loader(shards, 4, views=views, backend="dali", prefetch=prefetch) as loader:
            epochs.append(list(loader))
    assert len(epochs[0]) == 3
    for one, two in zip(*epochs, strict=True):
        assert len(one.views) == 7
        assert all(
            torch.equal(mine, theirs) for mine, theirs in zip(one.views, two.views, strict=True)
        )


def test_native_threads_end_with_the_iterator(dali, make_shards):
    loader = make_loader(make_shards(1, 24), 4, views=VIEWS, backend="dali", threads=3)
    list(loader)  # DALI has started the threads that it keeps
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        for _ in loader:
            break
        iterator = iter(loader)
        batch = next(iterator)
        loader.close()
        copy = batch.query.clone()
        deadline = time.monotonic() + 5  # DALI does not wait for its last thread
        while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/task")) <= before
        assert torch.equal(batch.query, copy)  # outlives its pipeline
