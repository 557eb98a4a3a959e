"""Usable CPUs under the quotas of control groups, v1 and v2, as in containers."""

import os
import pathlib

import pytest

from maskco_fast.loaders import LoaderConfig, ViewConfig
from maskco_fast.loaders.system import cpus


def machine(
    root: pathlib.Path, cgroup: str, files: dict[str, str]
) -> tuple[pathlib.Path, pathlib.Path]:
    """A /proc and a /sys/fs/cgroup with this text in /proc/self/cgroup and these files."""
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    (root / "cgroup").mkdir(exist_ok=True)
    return root / "proc", root / "cgroup"


V1_LIMITED = {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/user/job", {"user/cpu.max": "150000 100000", "user/job/cpu.max": "max 100000"}, 1.5),
        (
            "0::/user/job",
            {"user/cpu.max": "800000 100000", "user/job/cpu.max": "200000 100000"},
            2.0,
        ),
        ("0::/a/path/of/the/host", {"cpu.max": "400000 100000"}, 4.0),
        (
            "4:cpu,cpuacct:/docker/1",
            {f"cpu,cpuacct/docker/1/{name}": text for name, text in V1_LIMITED.items()},
            4.0,
        ),
        (
            "4:cpu,cpuacct:/docker/1",
            {f"cpu/{name}": text for name, text in V1_LIMITED.items()},
            4.0,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/", {"memory/cpu.max": "100000 100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
    ],
)
def test_quota(tmp_path, cgroup, files, quota):
    assert cpus.cpu_quota(*machine(tmp_path, cgroup, files)) == quota


def test_without_control_groups_the_affinity_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert cpus.usable_cpus(tmp_path, tmp_path) == 5


@pytest.mark.parametrize(
    ("quota", "expected"), [(400_000, 4), (250_000, 3), (10_000, 1), (9_000_000, 64)]
)
def test_a_container_of_a_large_machine_starts_as_many_threads_as_its_quota(
    tmp_path, monkeypatch, quota, expected
):
    """Without the quota it would start 64 threads on 4 CPUs."""
    proc, groups = machine(tmp_path, "0::/", {"cpu.max": f"{quota} 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cpus.usable_cpus, "__defaults__", (proc, groups))
    assert cpus.usable_cpus() == expected
    assert LoaderConfig(batch_size=1, views=ViewConfig()).thread_count == expected


@pytest.mark.parametrize(
    ("usable", "processes", "device", "expected"),
    [
        (16, 1, "cpu", 16),
        (16, 1, "cuda", 14),
        (8, 1, "cuda", 6),
        (7, 1, "cuda", 6),
        (2, 1, "cuda", 1),
        (1, 1, "cuda", 1),
        (16, 4, "cpu", 4),
        (16, 4, "cuda", 3),
        (2, 4, "cuda", 1),
    ],
)
def test_a_device_leaves_cpus_to_the_main_thread(monkeypatch, usable, processes, device, expected):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: usable)
    assert cpus.loader_threads(device, processes) == expected
    if processes == 1:
        config = LoaderConfig(batch_size=1, views=ViewConfig(), device=device)
        assert config.thread_count == expected
        assert LoaderConfig(batch_size=1, views=ViewConfig(), threads=5).thread_count == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor : 0\nmodel name : A CPU @ 2.0: fast\nflags : fpu avx2\n\nprocessor : 1\n",
            ("A CPU @ 2.0: fast", {"fpu", "avx2"}),
        ),
        ("processor : 0\nFeatures : fp asimd bf16\n", ("", {"fp", "asimd", "bf16"})),
    ],
    ids=["x86", "arm"],
)
def test_the_cpus_name_and_flags(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpus.cpu_model(tmp_path) == expected
    assert cpus.cpu_model(tmp_path / "absent") == ("", set())
