"""The CPU's name and instructions, and the CPUs that this process may use, by its affinity mask
and its control groups' CPU quota."""

import math
import os
import pathlib
from collections.abc import Iterator

PROC, CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")


def usable_cpus(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """CPUs that this process may use, at least 1: those of the affinity mask, capped by the quota.

    A container limited to 4 of 64 CPUs usually has all 64 in its affinity mask and a quota of 4. A
    quota of 2.5 CPUs counts as 3. `proc` and `cgroups` are the mount points of /proc and the
    control groups.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cpu_quota(proc, cgroups)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def loader_threads(device_type: str, processes: int = 1) -> int:
    """The default number of a loader's threads in each of `processes` processes of this host.

    On a CPU, the process's share of the usable CPUs: training and loading take turns. On a device,
    the thread that launches its work must not wait for a core, or the device does: one CPU of the
    share is left to it, and a second one from 8 on, for checkpoints and autograd. At least 1.
    """
    share = max(1, usable_cpus() // processes)
    if device_type in ("cpu", "meta"):
        return share
    return max(1, share - (2 if share >= 8 else 1))


def cpu_model(proc: pathlib.Path = PROC) -> tuple[str, frozenset[str]]:
    """The CPU's name and its instruction flags, as Linux's /proc/cpuinfo has them; empty elsewhere.

    Flags are x86's names, such as "avx2", or Arm's, such as "asimd".
    """
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:  # not Linux, or /proc is not mounted
        return "", frozenset()
    # Each CPU repeats the fields; the last one's stand.
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", ""), frozenset(flags.split())


def cpu_quota(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> float | None:
    """The smallest quota of this process's control groups (v1 or v2), in CPUs; None without one."""
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
            # In a container the path may be the host's and absent here: the root is then the group.
            inner = root / group.lstrip("/")
            yield inner
            yield from (
                parent for parent in inner.parents if parent == root or root in parent.parents
            )


def _quotas(folder: pathlib.Path) -> Iterator[float]:
    """The quotas of one control group, in CPUs: v2's cpu.max, v1's cpu.cfs_quota_us."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # absent, or an unknown format
        pass
    try:
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        if microseconds > 0:  # -1: no limit
            yield microseconds / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        pass
