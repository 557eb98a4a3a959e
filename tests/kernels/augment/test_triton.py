"""The Triton kernels' values, under Triton's interpreter on any machine, and on a CUDA device.

The interpreter must be chosen before Triton is first imported, so it runs in a child process. Every
call writes into a poisoned buffer with margins, so that any test fails if elements stay unwritten
or are written outside.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from maskco_fast.kernels.augment import torch as augment_torch
from maskco_fast.kernels.augment import triton as augment_triton
from maskco_fast.kernels.augment.reference import finish_reference
from maskco_fast.kernels.plan import BLUR_SIGMA, SOLARIZE, VIEW_FLOATS, plan
from maskco_fast.kernels.views import IMAGENET_STD, View, ViewConfig
from tests.support.augmentation import (
    HALF_UNIT,
    LIGHTING,
    ORDERS,
    expected_levels,
    make_rows,
    make_views,
)

MARGIN = 64
ONE_LEVEL = 1.001 / 255 / min(IMAGENET_STD)
"""One level after normalisation."""
AFTER_HUE = 10
"""Levels to which a difference of one in the hue can grow by SimCLR's factors, at most 1.8."""
Run = Callable[..., np.ndarray]


def run_on(
    device: str,
    views: np.ndarray,
    rows: np.ndarray,
    boxes: np.ndarray | None,
    dtype: torch.dtype,
    flip: bool,
    dense: bool,
    launch: int,
) -> np.ndarray:
    """`augment_triton.augment` into poisoned memory on `device`: channels last, float32 or uint8.

    Unless `dense`, the views have gaps on every axis. `launch`: the views that the workspace holds.
    """
    source = torch.from_numpy(views).to(device)
    if not dense:
        *lead, height, width, _ = views.shape
        roomy = torch.full((*lead, height + 3, width + 5, 4), 99, dtype=torch.uint8, device=device)
        roomy[..., 1:-2, 2:-3, :3] = source
        source = roomy[..., 1:-2, 2:-3, :3]
    poison = 201 if dtype == torch.uint8 else float("nan")
    buffer = torch.full((source.numel() + 2 * MARGIN,), poison, dtype=dtype, device=device)
    out = buffer[MARGIN:-MARGIN].view(views.shape).movedim(-1, -3)
    workspace = augment_triton.Workspace.allocate(views.shape[-2], device, views=launch)
    workspace.levels.fill_(211)  # reads of memory that was never written show
    workspace.sums.fill_(-(10**6))
    returned = augment_triton.augment(
        source,
        torch.from_numpy(rows).to(device),
        workspace=workspace,
        masked_box=None if boxes is None else torch.from_numpy(boxes).to(device),
        flip=flip,
        dtype=dtype,
        out=out,
    )
    assert returned.data_ptr() == out.data_ptr()
    margins = torch.cat((buffer[:MARGIN], buffer[-MARGIN:])).float()
    assert (margins == 201).all() if dtype == torch.uint8 else margins.isnan().all()
    values = out.movedim(-3, -1).cpu()
    if dtype == torch.uint8:
        return values.numpy()
    assert not values.isnan().any(), "some elements were never written"
    return values.float().numpy()


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    """`run_on` with defaults, in the interpreter or on the CUDA device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def call(
        views: np.ndarray,
        rows: np.ndarray,
        boxes: np.ndarray | None = None,
        dtype: torch.dtype = torch.uint8,
        flip: bool = False,
        dense: bool = True,
        launch: int = 64,
    ) -> np.ndarray:
        if request.param == "cuda":
            return run_on("cuda", views, rows, boxes, dtype, flip, dense, launch)
        pool = request.getfixturevalue("interpreter")
        return pool.submit(run_on, "cpu", views, rows, boxes, dtype, flip, dense, launch).result()

    return call


def check_levels(levels: np.ndarray, expected: np.ndarray, rows: np.ndarray, most: int = 1) -> None:
    """Fewer than one level in a thousand differs, by at most `most` where it is not solarised.

    Differences arise in the hue and the blur, where the exact value is so near a whole level that
    torchvision's own rounding decides.
    """
    difference = np.abs(levels.astype(int) - expected)
    plain = rows[:, SOLARIZE] == 0
    assert difference[plain].max(initial=0) <= most
    assert (difference > 0).mean() < 1e-3


def test_each_jitter_operation_alone(run: Run) -> None:
    """One operation with several factors, the other three at factors that change nothing."""
    factors = np.tile(np.array([1.0, 1.0, 1.0, 0.0]), (20, 1))
    for operation in range(3):
        factors[5 * operation : 5 * operation + 5, operation] = (0.0, 0.6, 1.0, 1.4, 2.0)
    factors[15:, 3] = (-0.5, -0.1, 0.0, 0.07, 0.5)
    views = make_views(25, 32)[np.arange(20) + np.arange(20) // 5]
    rows = make_rows(20, jitter=1, factors=factors)
    check_levels(run(views, rows), expected_levels(views, rows), rows)


def test_gray_solarize_and_lighting_alone(run: Run) -> None:
    lighting = [LIGHTING] * 3 + [(0, 0, 0)] * 7
    views = make_views(10, 32)
    rows = make_rows(10, gray=[1, 0] * 5, solarize=[0, 1] * 5, lighting=lighting)
    np.testing.assert_array_equal(run(views, rows), expected_levels(views, rows))


@pytest.mark.parametrize("size", [32, 61, 80])
def test_blur_alone(run: Run, size: int) -> None:
    """From one tap to the widest; at 1.3333334 float32 arithmetic would lose a tap."""
    sigmas = (0.1, 0.34, 1.0, 1.3333334, 2.0, 3.7, 5.0)
    views, rows = make_views(7, size), make_rows(7, blur_sigma=sigmas)
    check_levels(run(views, rows), expected_levels(views, rows), rows)


def test_all_orders(run: Run) -> None:
    factors = np.random.default_rng(1).uniform((0, 0, 0, -0.5), (2, 2, 2, 0.5), (24, 4))
    views, rows = make_views(24, 32), make_rows(24, jitter=1, order=ORDERS, factors=factors)
    check_levels(run(views, rows), expected_levels(views, rows), rows)


# The same plans each time: of 6000 values, seven may differ by chance where six are allowed.
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.sampled_from([32, 33, 39, 48, 50]),
    seed=st.integers(0, 2**31),
    preset=st.sampled_from(["moco_v2", "simclr", "byol", "npid", "supervised"]),
    dense=st.booleans(),
    flip=st.booleans(),
)
def test_planned_views(
    run: Run, size: int, seed: int, preset: str, dense: bool, flip: bool
) -> None:
    """Complete plan rows of every preset, at odd sizes and strides, flipped here or before."""
    views_of_preset: tuple[View, ...] = getattr(ViewConfig, preset)().views
    config = ViewConfig(views=views_of_preset, size=size, box_side=(8, 8))
    rows = plan(config, seed, 0, np.arange(2), np.full(2, 300), np.full(2, 200))[:, :VIEW_FLOATS]
    rows = np.ascontiguousarray(rows)
    views = make_views(2, size, seed)
    check_levels(
        run(views, rows, dense=dense, flip=flip),
        expected_levels(views, rows, flip),
        rows,
        AFTER_HUE,
    )


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float16, 32), (torch.float16, 35), (torch.bfloat16, 32), (torch.float32, 32)],
)
def test_normalised_and_masked(
    run: Run, request: pytest.FixtureRequest, dtype: torch.dtype, size: int
) -> None:
    """Boxes inside, fractional, touching and crossing the border, empty; only the first of two
    views is masked."""
    boxes = np.array(
        [
            [3.2, 4.7, 10.1, 20],
            [0, 0, size, size],
            [-3.5, 30.2, 4, 40],
            [31.5, 0, 33, 0.1],
            [5, 5, 5, 9],
        ],
        np.float32,
    )
    views = make_views(10, size)
    lighting = np.array([LIGHTING, (0, 0, 0)] * 5, np.float32)
    rows = make_rows(
        10,
        jitter=1,
        factors=(1.2, 0.7, 1.4, 0.1),
        blur_sigma=[0, 0, 1.5, 0.8, 0] * 2,
        lighting=lighting,
    )
    out = run(
        views.reshape(2, 5, size, size, 3),
        rows.reshape(2, 5, VIEW_FLOATS),
        boxes,
        dtype=dtype,
        launch=4,
    )
    levels = expected_levels(views, rows, lit=False)
    expected = np.stack(
        [
            finish_reference(level, boxes[n] if n < 5 else None, lighting[n])
            for n, level in enumerate(levels)
        ]
    )
    # The interpreter truncates to bfloat16 where the hardware rounds: up to a whole unit.
    interpreted = dtype == torch.bfloat16 and "interpreter" in request.node.callspec.id
    unit = HALF_UNIT[dtype] * (2 if interpreted else 1)
    apart, rounding = (
        np.abs(out.reshape(expected.shape) - expected),
        1e-6 + unit * 1.001 * np.abs(expected),
    )
    # A blurred level may differ by one from the reference's.
    assert (apart > rounding).mean() < 1e-3
    assert (apart <= rounding + ONE_LEVEL).all()
    np.testing.assert_array_equal(out.reshape(expected.shape) == 0, expected == 0)


def test_flip_in_vectors_and_byte_by_byte(run: Run) -> None:
    views, rows = make_views(2, 48), make_rows(2, flip=[1, 0], blur_sigma=[1, 0])
    expected = expected_levels(views, rows, flip=True)
    for dense in (True, False):
        check_levels(run(views, rows, flip=True, dense=dense), expected, rows)


def test_views_of_one_launch_do_not_matter(run: Run) -> None:
    views, rows = (
        make_views(5, 32),
        make_rows(5, jitter=[1, 0, 1, 1, 1], blur_sigma=[1, 0, 1, 0, 2]),
    )
    whole = run(views, rows, launch=8)
    for launch in (1, 2):
        np.testing.assert_array_equal(run(views, rows, launch=launch), whole)


def test_larger_view(run: Run) -> None:
    """Several programs a view in each pass, whose sums must be added, and tiles with neighbours on
    every side."""
    views = make_views(1, 112)
    rows = make_rows(
        1, jitter=1, order=[3, 1, 0, 2], factors=(1.3, 0.5, 1.2, 0.06), blur_sigma=1.7, gray=0
    )
    check_levels(run(views, rows), expected_levels(views, rows), rows)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [224, 511, 512])
def test_largest_views_on_cuda(size: int) -> None:
    """Sizes for which the interpreter would be too slow."""
    factors = np.random.default_rng(1).uniform((0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1), (24, 4))
    views, rows = (
        make_views(24, size),
        make_rows(24, jitter=1, order=ORDERS, factors=factors, blur_sigma=[0, 1.7] * 12),
    )
    levels = run_on("cuda", views, rows, None, torch.uint8, flip=False, dense=True, launch=64)
    check_levels(levels, expected_levels(views, rows), rows, AFTER_HUE)


class RecordedKernels:
    """Replaces the kernels' module and records launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, int], tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        launches = self.launches

        class Kernel:
            def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
                return lambda *arguments, **options: launches.append(
                    (name, grid, arguments, options)
                )

        return Kernel()


class RecordedOperations(TorchDispatchMode):
    """Records every tensor operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_neither_allocates_nor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three launches for each workspace of views. The only tensor operations are views, so that
    nothing is allocated, copied or read back."""
    kernels = RecordedKernels()
    monkeypatch.setitem(sys.modules, "maskco_fast.kernels.augment.triton_kernels", kernels)
    monkeypatch.setattr("maskco_fast.kernels.augment.triton_kernels", kernels, raising=False)
    views, parameters = (
        torch.zeros(2, 5, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(2, 5, VIEW_FLOATS),
    )
    workspace = augment_triton.Workspace.allocate(64, "cpu", views=4)
    out = augment_torch.empty_output(views, torch.float16)
    box = torch.zeros(5, 4)
    with RecordedOperations() as operations:
        augment_triton.augment(views, parameters, workspace=workspace, masked_box=box, out=out)
    assert set(operations.names) <= {"permute", "view", "unsqueeze", "slice", "alias", "detach"}
    assert [name for name, *_ in kernels.launches] == ["gray_sums", "colour", "blur"] * 3
    assert [grid for _, grid, *_ in kernels.launches] == [
        *[(2, 4), (2, 4), (2, 4, 1)] * 2,
        *[(2, 2), (2, 2), (2, 2, 1)],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"workspace": augment_triton.Workspace.allocate(64, "cpu", views=1)},
            "must be for side 32 on cpu, got one for side 64 on cpu",
        ),
        (
            {"out": torch.zeros(2, 32, 32, 3).movedim(-1, 1)},
            "must be torch.float16 .2, 3, 32, 32. on cpu",
        ),
        (
            {"out": torch.zeros(1, 32, 32, 3, dtype=torch.float16).movedim(-1, 1)},
            "must be torch.float16 .2, 3, 32, 32.",
        ),
        (
            {"out": torch.zeros(2, 3, 32, 32, dtype=torch.float16)},
            "must be channels-last and dense",
        ),
        (
            {"out": torch.zeros(6145, dtype=torch.float16)[1:].view(2, 32, 32, 3).movedim(-1, 1)},
            "multiple of 16 bytes",
        ),
        ({"parameters": torch.zeros(2, 16)}, "for views of"),
    ],
)
def test_errors_name_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "views": torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        "parameters": torch.zeros(2, VIEW_FLOATS),
        "workspace": augment_triton.Workspace.allocate(32, "cpu", views=1),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        augment_triton.augment(**arguments)


@pytest.mark.parametrize(("size", "views"), [(31, 1), (1025, 1), (32, 0), (32, 70000)])
def test_workspace_refuses(size: int, views: int) -> None:
    with pytest.raises(ValueError, match=r"must be in \[(32, 1024|1, 65535)\]"):
        augment_triton.Workspace.allocate(size, "cpu", views=views)


def test_imports_without_triton() -> None:
    """The module imports without Triton, and `unusable` gives that reason."""
    program = (
        "import sys; sys.modules['triton'] = None; sys.meta_path.insert(0, type('Finder', (), {"
        "'find_spec': staticmethod(lambda name, *_: "
        "(_ for _ in ()).throw(ModuleNotFoundError(name)) "
        "if name.startswith('triton') else None)}));"
        "from maskco_fast.kernels.augment import triton as augment_triton;"
        "print(augment_triton.unusable('cuda'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "triton is not installed"


def test_unusable_says_why_and_plain_torch_takes_over() -> None:
    pytest.importorskip("triton")
    plain = augment_triton.augmenter(32, "cpu", max_blur_sigma=2.0)
    assert (plain.func, plain.keywords) == (augment_torch.augment, {"max_blur_sigma": 2.0})  # type: ignore[attr-defined]
    assert augment_triton.unusable("cpu") == "Triton has no code for cpu devices"
    if not torch.cuda.is_available():
        assert augment_triton.unusable("cuda") == "torch sees no CUDA device"


@pytest.mark.parametrize(
    ("capability", "version", "reason"),
    [
        ((7, 5), "3.8.0", "compute capability 7.5;"),
        ((9, 0), "3.2.0", "Triton 3.2.0;"),
        ((9, 0), "3.10.1", None),
    ],
)
def test_old_hardware_and_old_triton(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str, reason: str | None
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(triton, "__version__", version)
    found = augment_triton.unusable("cuda")
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_replays_without_waiting() -> None:
    """A captured graph replays on new values; a call neither allocates nor synchronises."""
    views = torch.from_numpy(make_views(8, 64)).cuda()
    rows = torch.from_numpy(
        make_rows(8, jitter=1, factors=(1.2, 0.8, 1.3, 0.1), blur_sigma=[0, 1] * 4)
    ).cuda()
    workspace = augment_triton.Workspace.allocate(64, views=8)
    out = augment_torch.empty_output(views, torch.float16)
    augment_triton.augment(views, rows, workspace=workspace, out=out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment_triton.augment(views, rows, workspace=workspace, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        augment_triton.augment(views, rows, workspace=workspace, out=out)
    views.copy_(views.flip(0))
    graph.replay()
    expected = augment_torch.augment(views, rows)
    assert (out.float() - expected.float()).abs().gt(1e-3).float().mean() < 1e-3
    assert float(rows[1, BLUR_SIGMA]) == 1
