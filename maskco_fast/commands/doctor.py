"""What is installed here, which loaders and devices are usable, and what to install for the rest.

Every package is tried in a process of its own (`probes`), so that asking has no side effects:
nothing of CUDA, DALI or FFCV is loaded into the caller, and a package that crashes on import is a
line of the report. This module itself needs only the standard library, so that it works when the
rest does not.
"""

import dataclasses
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from maskco_fast.loaders.system.cpus import cpu_quota, usable_cpus

State = Literal["ok", "missing", "broken"]

PROBE_SECONDS = 120
"""A package that takes longer to import and answer than this counts as broken."""

# Each probe prints one line of JSON: what there is to say about the package that it could import
# and use.
PROBES = {
    "torch": """
        import torch
        cuda = torch.version.cuda
        devices = []
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            devices.append({"name": p.name, "capability": f"{p.major}.{p.minor}", "gib": round(p.total_memory / 2**30)})
        answer(torch, cuda=cuda, devices=devices, threads=torch.get_num_threads(),
               vectors=torch.backends.cpu.get_cpu_capability())
    """,
    "torchvision": "import torchvision; from torchvision.ops import roi_align; answer(torchvision)",
    "numpy": "import numpy; answer(numpy)",
    "numba": """
        import importlib, numba
        assert numba.njit(lambda x: x + 1)(1) == 2
        layers = []
        for layer, module in (("tbb", "tbbpool"), ("omp", "omppool"), ("workqueue", "workqueue")):
            try:
                importlib.import_module(f"numba.np.ufunc.{module}")
                layers.append(layer)
            except ImportError:
                pass
        answer(numba, layers=layers)
    """,
    "kernel cache": """
        import shutil
        from maskco_fast.kernels.compiler.cache import cache_folder
        folder = cache_folder("numba")
        answer(None, folder=str(folder), free_gib=round(shutil.disk_usage(folder).free / 2**30, 1))
    """,
    "pillow": """
        import PIL.Image, PIL.features
        answer(PIL, turbo=bool(PIL.features.check("libjpeg_turbo")), webp=bool(PIL.features.check("webp")))
    """,
    "simplejpeg": """
        import numpy, simplejpeg
        data = simplejpeg.encode_jpeg(numpy.full((16, 16, 3), 200, numpy.uint8))
        assert abs(int(simplejpeg.decode_jpeg(data).mean()) - 200) < 3
        answer(simplejpeg)
    """,
    "libturbojpeg": """
        import ctypes, ctypes.util
        name = ctypes.util.find_library("turbojpeg")
        if name is None:
            raise ModuleNotFoundError("no shared library libturbojpeg")
        ctypes.CDLL(name)
        answer(None, file=name)
    """,
    "webdataset": "import webdataset; answer(webdataset)",
    "tensorboard": "import tensorboard, tensorboard.summary.writer.event_file_writer; answer(tensorboard)",
    "matplotlib": "import matplotlib.figure; answer(matplotlib)",
    "tyro": "import tyro; answer(tyro)",
    "triton": "import triton; answer(triton)",
    "dali": """
        import io, numpy, PIL.Image, nvidia.dali, nvidia.dali.fn as fn
        file = io.BytesIO()
        PIL.Image.fromarray(numpy.full((16, 16, 3), 200, numpy.uint8)).save(file, "JPEG")
        data = numpy.frombuffer(file.getvalue(), numpy.uint8)
        @nvidia.dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
        def decode():
            return fn.decoders.image(fn.external_source(lambda: [data], batch=True), device="cpu")
        pipeline = decode()
        pipeline.build()
        assert abs(int(numpy.asarray(pipeline.run()[0].at(0)).mean()) - 200) < 3
        answer(nvidia.dali)
    """,
    "ffcv": "import ffcv, ffcv.fields.rgb_image; answer(ffcv)",
    "s3fs": "import aiohttp, fsspec, s3fs; answer(s3fs)",
}
"""Package name to the code that tries it."""

_PRELUDE = """
import json
def answer(module, **facts):
    version = getattr(module, "__version__", None)
    print("\\n" + json.dumps({"version": version, **facts}))
"""

_FFCV_DEBIAN = {"g++": "g++", "pkg-config": "pkg-config"}
_FFCV_LIBRARIES = {"opencv4": "libopencv-dev", "libturbojpeg": "libturbojpeg0-dev"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    """What was found, or why not, in one line."""
    fix: str = ""
    """What to do about it, a command where there is one; empty where nothing is to be done."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The probe's answer."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `report` found."""

    machine: dict[str, Any]
    packages: list[Check]
    loaders: list[Check]
    devices: list[Check]

    @property
    def usable(self) -> bool:
        """Whether training can run here at all: one loader and one device."""
        return all(
            any(check.state == "ok" for check in checks) for checks in (self.loaders, self.devices)
        )

    def as_json(self) -> str:
        """The report as one JSON object: machine, packages, loaders, devices, usable."""
        return json.dumps({**dataclasses.asdict(self), "usable": self.usable}, indent=2)

    def as_text(self) -> str:
        """The report for people, a line a check and an indented line with the remedy."""
        lines = [f"{name:<14}{value}" for name, value in self.machine.items()]
        for title, checks in (
            ("Packages", self.packages),
            ("Loaders", self.loaders),
            ("Devices", self.devices),
        ):
            lines += ["", title]
            for check in checks:
                lines.append(f"  {check.state:<8}{check.name:<14}{check.detail}")
                if check.fix:
                    lines.append(f"  {'':<22}→ {check.fix}")
        lines += [
            "",
            "Training can run here."
            if self.usable
            else "Training cannot run here; see the arrows above.",
        ]
        return "\n".join(lines)


def install_command(package: str) -> str:
    """The command that installs `package` (a PyPI name, or `maskco-fast[extra]`) into this
    interpreter."""
    return f"{sys.executable} -m pip install '{package}'"


def _remedy(name: str) -> str:
    """What to do when the probe `name` failed."""
    if name == "dali":
        return f"for --loader dali: {install_command('maskco-fast[dali]')} (with CUDA 12: nvidia-dali-cuda120)"
    if name == "ffcv":
        wanted = [
            package for program, package in _FFCV_DEBIAN.items() if shutil.which(program) is None
        ]
        wanted += (
            []
            if pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
            else ["python3-dev"]
        )
        wanted += [
            package
            for library, package in _FFCV_LIBRARIES.items()
            if not _pkg_config_knows(library)
        ]
        system = f"sudo apt-get install {' '.join(wanted)} && " if wanted else ""
        return f"for --loader ffcv: {system}{install_command('maskco-fast[ffcv]')}"
    if name == "s3fs":
        return f"for shards named by http(s):// and s3://: {install_command('maskco-fast[remote]')}"
    if name == "libturbojpeg":
        return "optional; sudo apt-get install libturbojpeg0"
    if name == "kernel cache":
        return "set MASKCO_FAST_CACHE to a folder that is writable"
    if name == "triton":
        return "only for CUDA; comes with torch's CUDA builds on Linux"
    return install_command(name)


def _pkg_config_knows(library: str) -> bool:
    program = shutil.which("pkg-config")
    if program is None:
        return False
    return (
        subprocess.run([program, "--exists", library], check=False, capture_output=True).returncode
        == 0
    )


def probe(name: str, code: str, seconds: float = PROBE_SECONDS) -> Check:
    """Run `code` (as in `PROBES`) in a Python process of its own and say what came of it."""
    indent = len(code) - len(code.lstrip("\n ")) - 1 if code.startswith("\n") else 0
    program = _PRELUDE + "\n".join(line[indent:] for line in code.splitlines())
    try:
        result = subprocess.run(
            [sys.executable, "-c", program],
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Check(
            name=name, state="broken", detail=f"no answer within {seconds:g} s", fix=_remedy(name)
        )
    if result.returncode == 0:
        facts = json.loads(result.stdout.strip().splitlines()[-1])
        return Check(name=name, state="ok", detail=_describe(facts), facts=facts)
    reason = (result.stderr.strip().splitlines() or [f"ended with code {result.returncode}"])[-1]
    missing = reason.startswith("ModuleNotFoundError")
    return Check(
        name=name, state="missing" if missing else "broken", detail=reason, fix=_remedy(name)
    )


def _describe(facts: dict[str, Any]) -> str:
    """A probe's answer in one line: the version, then what else it said."""
    others = [
        f"{name} {value}"
        for name, value in facts.items()
        if name != "version" and value not in (None, [])
    ]
    return ", ".join([str(facts["version"]), *others] if facts["version"] else others)


def machine() -> dict[str, Any]:
    """Facts of the machine and the interpreter, name to value."""
    model, flags = _cpu()
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
        "avx512_bf16",
        "amx_bf16",
        "asimd",
    )
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model or platform.processor() or "unknown",
        "cpus": f"{usable_cpus()} usable of {os.cpu_count()}",
        "instructions": " ".join(flag for flag in wanted if flag in flags) or "unknown",
    }
    quota = cpu_quota()
    if quota is not None:
        facts["cpu quota"] = f"{quota:g} CPUs (control group); loaders start that many threads"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = (
            f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
        )
    return facts


def _cpu() -> tuple[str, set[str]]:
    """The CPU's name and instruction flags from Linux's /proc/cpuinfo; empty elsewhere."""
    path = pathlib.Path("/proc/cpuinfo")
    model, flags = "", set()
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
    return model, flags


LOADER_NEEDS = {
    "reference": ("torch", "torchvision", "numpy", "numba", "pillow"),
    "native": ("torch", "numpy", "numba", "kernel cache", "pillow", "simplejpeg"),
    "dali": ("torch", "numpy", "numba", "kernel cache", "dali"),
    "ffcv": ("torch", "numpy", "numba", "kernel cache", "ffcv"),
}
"""`--loader` names and the probes that must be ok for them."""


def _loader(name: str, found: dict[str, Check]) -> Check:
    """Whether the loader `name` can run here, from the probes."""
    lacking = [found[need] for need in LOADER_NEEDS[name] if found[need].state != "ok"]
    if lacking:
        reasons = "; ".join(f"{check.name} is {check.state} ({check.detail})" for check in lacking)
        return Check(name=name, state="missing", detail=f"needs {reasons}", fix=lacking[0].fix)
    return Check(name=name, state="ok", detail=f"--loader {name}")


def _devices(found: dict[str, Check]) -> list[Check]:
    """Which `--device` can be used here, from torch's probe."""
    torch = found["torch"]
    if torch.state != "ok":
        return [
            Check(name=name, state="missing", detail="needs torch", fix=torch.fix)
            for name in ("cpu", "cuda")
        ]
    cpu = Check(
        name="cpu", state="ok", detail=f"{torch.facts['threads']} threads, {torch.facts['vectors']}"
    )
    if torch.facts["cuda"] is None:
        detail = "this torch is a build without CUDA"
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return [cpu, Check(name="cuda", state="missing", detail=detail, fix=fix)]
    if not torch.facts["devices"]:
        detail = f"torch is built for CUDA {torch.facts['cuda']}, but no GPU is seen"
        return [
            cpu,
            Check(
                name="cuda", state="missing", detail=detail, fix="does nvidia-smi list a GPU here?"
            ),
        ]
    names = [
        f"{one['name']} (sm {one['capability']}, {one['gib']} GiB)"
        for one in torch.facts["devices"]
    ]
    return [cpu, Check(name="cuda", state="ok", detail=", ".join(names))]


def report() -> Report:
    """Look at everything; takes a few seconds, since every package is imported in a process of its
    own."""
    with ThreadPoolExecutor(max_workers=max(usable_cpus(), 2)) as pool:
        packages = list(pool.map(probe, PROBES.keys(), PROBES.values()))
    found = {check.name: check for check in packages}
    loaders = [_loader(name, found) for name in LOADER_NEEDS]
    return Report(machine=machine(), packages=packages, loaders=loaders, devices=_devices(found))


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Tell what is installed, which loaders and devices work here, and what to install for the
    rest."""

    json: bool = False
    """Print JSON instead of text."""


def doctor(*, as_json: bool = False) -> int:
    """Print the report, as text or JSON; returns the exit code, 0 where training can run."""
    result = report()
    print(result.as_json() if as_json else result.as_text())
    return 0 if result.usable else 1
