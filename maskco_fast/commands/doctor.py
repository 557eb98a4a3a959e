"""The `doctor` command: report installed packages, usable loaders and devices, and what to install.

Each package is imported in a separate process (`probe`). The caller loads nothing of CUDA, DALI or
FFCV, and a package that crashes on import becomes a line of the report. This module needs only the
standard library, so that it works in a broken installation.
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

from maskco_fast.errors import FAILURE, SUCCESS
from maskco_fast.loaders.system.cpus import cpu_model, cpu_quota, usable_cpus

State = Literal["ok", "missing", "broken"]

PROBE_SECONDS = 120
"""Time limit of a probe; a package that takes longer counts as broken."""

# Each probe imports and uses a package, then calls `answer` with the facts to report.
PROBES = {
    "torch": """
        import torch
        cuda = torch.version.cuda
        devices = []
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            gib = round(p.total_memory / 2**30)
            devices.append({"name": p.name, "capability": f"{p.major}.{p.minor}", "gib": gib})
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
        turbo = bool(PIL.features.check("libjpeg_turbo"))
        answer(PIL, turbo=turbo, webp=bool(PIL.features.check("webp")))
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
    "tensorboard": """
        import tensorboard, tensorboard.summary.writer.event_file_writer
        answer(tensorboard)
    """,
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
    "ffcv": """
        import importlib.metadata, ffcv, ffcv.fields.rgb_image
        # ffcv.__version__ of release 1.0.2 is "0.0.3rc1".
        answer(None, version=importlib.metadata.version("ffcv"))
    """,
    "s3fs": "import aiohttp, fsspec, s3fs; answer(s3fs)",
}
"""Package name to the code that imports and uses it."""

_PRELUDE = """
import json
def answer(module, **facts):
    facts = {"version": getattr(module, "__version__", None), **facts}
    print("\\n" + json.dumps(facts))
"""

_FFCV_DEBIAN = {"g++": "g++", "pkg-config": "pkg-config"}
"""Programs that compile FFCV, with their Debian packages."""
_FFCV_LIBRARIES = {"opencv4": "libopencv-dev", "libturbojpeg": "libturbojpeg0-dev"}
"""Libraries that FFCV links to, by their pkg-config names, with their Debian packages."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The state of a package, loader or device."""

    name: str
    state: State
    detail: str
    """What was found, or the error, in one line."""
    fix: str = ""
    """What to do about it, as a command where there is one; empty for state "ok"."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The facts that the probe reported."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of `report`."""

    machine: dict[str, Any]
    packages: list[Check]
    loaders: list[Check]
    devices: list[Check]

    @property
    def usable(self) -> bool:
        """Whether training can run here: at least one loader and one device are ok."""
        return all(
            any(check.state == "ok" for check in checks) for checks in (self.loaders, self.devices)
        )

    def as_json(self) -> str:
        """The report as one JSON object: machine, packages, loaders, devices, usable."""
        return json.dumps({**dataclasses.asdict(self), "usable": self.usable}, indent=2)

    def as_text(self) -> str:
        """The report as text: a line a check, and an indented line with its fix."""
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
        install = install_command("maskco-fast[dali]")
        return f"for --loader dali: {install} (with CUDA 12: nvidia-dali-cuda120)"
    if name == "ffcv":
        packages = [
            package for program, package in _FFCV_DEBIAN.items() if shutil.which(program) is None
        ]
        if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
            packages.append("python3-dev")
        packages += [
            package
            for library, package in _FFCV_LIBRARIES.items()
            if not _pkg_config_knows(library)
        ]
        system = f"sudo apt-get install {' '.join(packages)} && " if packages else ""
        return f"for --loader ffcv: {system}{install_command('maskco-fast[ffcv]')}"
    if name == "s3fs":
        return f"for http(s):// and s3:// shards: {install_command('maskco-fast[remote]')}"
    if name == "libturbojpeg":
        return "optional; sudo apt-get install libturbojpeg0"
    if name == "kernel cache":
        return "set MASKCO_FAST_CACHE to a writable folder"
    if name == "triton":
        return "only for CUDA; comes with torch's CUDA builds on Linux"
    return install_command(name)


def _pkg_config_knows(library: str) -> bool:
    """Whether pkg-config finds the development files of `library`."""
    program = shutil.which("pkg-config")
    if program is None:
        return False
    result = subprocess.run([program, "--exists", library], check=False, capture_output=True)
    return result.returncode == 0


def probe(name: str, code: str, seconds: float = PROBE_SECONDS) -> Check:
    """Run `code` (as in `PROBES`) in a separate Python process and report the outcome."""
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
    """A probe's facts in one line: the version, then the others."""
    others = [
        f"{name} {value}"
        for name, value in facts.items()
        if name != "version" and value not in (None, [])
    ]
    return ", ".join([str(facts["version"]), *others] if facts["version"] else others)


INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16"),
    "asimd",
)
"""CPU flags that the kernels and torch make use of, by their names in /proc/cpuinfo."""


def machine() -> dict[str, Any]:
    """Facts of the machine and the interpreter, name to value."""
    model, flags = cpu_model()
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model or platform.processor() or "unknown",
        "cpus": f"{usable_cpus()} usable of {os.cpu_count()}",
        "instructions": " ".join(flag for flag in INSTRUCTIONS if flag in flags) or "unknown",
    }
    quota = cpu_quota()
    if quota is not None:
        facts["cpu quota"] = f"{quota:g} CPUs (cgroup); loaders start this many threads"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{memory / 2**30:.0f} GiB"
    return facts


LOADER_NEEDS = {
    "reference": ("torch", "torchvision", "numpy", "numba", "pillow"),
    "native": ("torch", "numpy", "numba", "kernel cache", "pillow", "simplejpeg"),
    "dali": ("torch", "numpy", "numba", "kernel cache", "dali"),
    "ffcv": ("torch", "numpy", "numba", "kernel cache", "ffcv"),
}
"""`--loader` name to the probes that must be ok for it."""


def _loader(name: str, found: dict[str, Check]) -> Check:
    """Whether the loader `name` can run here. `found`: the probes' results by name."""
    lacking = [found[need] for need in LOADER_NEEDS[name] if found[need].state != "ok"]
    if lacking:
        reasons = "; ".join(f"{check.name} is {check.state} ({check.detail})" for check in lacking)
        return Check(name=name, state="missing", detail=f"needs {reasons}", fix=lacking[0].fix)
    return Check(name=name, state="ok", detail=f"--loader {name}")


def _devices(found: dict[str, Check]) -> list[Check]:
    """Which `--device` can be used here. `found`: the probes' results by name."""
    torch = found["torch"]
    if torch.state != "ok":
        return [
            Check(name=name, state="missing", detail="needs torch", fix=torch.fix)
            for name in ("cpu", "cuda")
        ]
    detail = f"{torch.facts['threads']} threads, {torch.facts['vectors']}"
    cpu = Check(name="cpu", state="ok", detail=detail)
    if torch.facts["cuda"] is None:
        detail = "this torch is a build without CUDA"
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return [cpu, Check(name="cuda", state="missing", detail=detail, fix=fix)]
    if not torch.facts["devices"]:
        detail = f"torch is built for CUDA {torch.facts['cuda']}, but finds no GPU"
        fix = "check that nvidia-smi lists a GPU"
        return [cpu, Check(name="cuda", state="missing", detail=detail, fix=fix)]
    names = [
        f"{one['name']} (sm {one['capability']}, {one['gib']} GiB)"
        for one in torch.facts["devices"]
    ]
    return [cpu, Check(name="cuda", state="ok", detail=", ".join(names))]


def report() -> Report:
    """Check all packages, loaders and devices; takes a few seconds, one process a package."""
    with ThreadPoolExecutor(max_workers=max(usable_cpus(), 2)) as pool:
        packages = list(pool.map(probe, PROBES.keys(), PROBES.values()))
    found = {check.name: check for check in packages}
    loaders = [_loader(name, found) for name in LOADER_NEEDS]
    return Report(machine=machine(), packages=packages, loaders=loaders, devices=_devices(found))


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Report installed packages, usable loaders and devices, and what to install for the rest."""

    json: bool = False
    """Print JSON instead of text."""


def doctor(config: DoctorConfig) -> int:
    """Print the report; returns the exit code, success if training can run here."""
    result = report()
    print(result.as_json() if config.json else result.as_text())
    return SUCCESS if result.usable else FAILURE
