"""How many CPUs this process may use: its affinity mask, and the CPU quota of its control groups."""

import math
import os
import pathlib
from collections.abc import Iterator

PROC, CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")


def usable_cpus(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """CPUs that this process may use, at least 1: the affinity mask's, or fewer where a quota
    allows less.

    A container limited to 4 of 64 CPUs usually sees all 64 in its affinity mask; only the quota
    says 4. A quota of 2.5 CPUs counts as 3. `proc` and `cgroups` are where Linux mounts /proc and
    the control groups.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cpu_quota(proc, cgroups)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def cpu_quota(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> float | None:
    """The tightest CPU quota of this process's control groups (v1 or v2) and their parents, in
    CPUs; None without one."""
    quotas = [quota for folder in _folders(proc, cgroups) for quota in _quotas(folder)]
    return min(quotas, default=None)


def _folders(proc: pathlib.Path, cgroups: pathlib.Path) -> Iterator[pathlib.Path]:
    """The control group folders that may limit this process, innermost first."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux, or /proc is not mounted
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # v2, the only hierarchy or beside v1's
            roots = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        for root in roots:
            # Inside a container the path may be the host's and not exist here: the mount's root is
            # then the group.
            inner = root / group.lstrip("/")
            yield inner
            yield from (
                parent for parent in inner.parents if parent == root or root in parent.parents
            )


def _quotas(folder: pathlib.Path) -> Iterator[float]:
    """The quota that one control group sets, in CPUs: v2's cpu.max ("max" or microseconds a
    period), v1's two files."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    except (
        OSError,
        ValueError,
        ZeroDivisionError,
    ):  # absent, or nothing that this kernel version explains
        pass
    try:
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        if microseconds > 0:  # -1: no limit
            yield microseconds / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        pass
