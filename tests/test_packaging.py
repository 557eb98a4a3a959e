"""What the package promises as a whole: quiet imports, one direction between the folders, a
complete wheel."""

import ast
import collections
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = {
    "maskco_fast": "maskco_fast",
    "loaders": "maskco_fast/loaders",
    "kernels": "maskco_fast/kernels",
}
"""Folder in the repository to folder in the wheel."""
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

QUIET = """
import os, signal, sys, threading
import numpy, torch
# As if they were not installed: importing them fails.
sys.modules["ffcv"] = sys.modules["nvidia.dali"] = None

def state():
    return {
        "environment": dict(os.environ),
        "threads of torch": torch.get_num_threads(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "default dtype": torch.get_default_dtype(),
        "CUDA": torch.cuda.is_initialized(),
        "gradients": torch.is_grad_enabled(),
        "threads": threading.active_count(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "folder": os.getcwd(),
        "cache": os.path.exists(os.environ["MASKCO_FAST_CACHE"]),
    }

for name in sys.argv[1:]:
    before = state()
    __import__(name)
    after = state()
    changed = [part for part in before if before[part] != after[part]]
    assert not changed, f"importing {name} changed: {changed}"
assert "torchvision" not in sys.modules, "the loaders' first batch would wait another second"
"""


def installed(path):
    """The place in the wheel of a source file of the repository."""
    folder, *rest = path.relative_to(ROOT).parts
    return "/".join([FOLDERS[folder], *rest])


def module_name(path):
    """The dotted name that a source file has when installed."""
    parts = installed(path).removesuffix(".py").split("/")
    return ".".join(parts[:-1] if path.stem == "__init__" else parts)


def run(*arguments, **options):
    result = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_imports_change_nothing_and_need_no_extra(tmp_path):
    """Of each folder in turn, in one process."""
    environment = {**os.environ, "MASKCO_FAST_CACHE": str(tmp_path / "cache")}
    names = ("maskco_fast", "maskco_fast.kernels", "maskco_fast.loaders")
    run("-c", QUIET, *names, cwd=tmp_path, env=environment)


def imports_of(source, name, package):
    """The absolute names that module `name` imports anywhere in `source`, in functions too.

    `package`: whether the module is a package's `__init__`.
    """
    home = name if package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = home.split(".")[: len(home.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            else:
                base = node.module or ""
            # `from package import module` imports the module too.
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


FLOORS = ("maskco_fast.kernels", "maskco_fast.loaders", "maskco_fast")
"""From the bottom up; a module may import from its own floor and those below."""


def floor(module):
    return next(
        number for number, prefix in enumerate(FLOORS) if f"{module}.".startswith(f"{prefix}.")
    )


def upward(graph):
    """The imports that lead to a higher floor, as (module, imported)."""
    return [
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if floor(target) > floor(module)
    ]


def circle(graph):
    """A circle of imports as a list of modules, or an empty list."""
    finished = set()
    path: list[str] = []

    def visit(module):
        if module in finished:
            return []
        if module in path:
            return [*path[path.index(module) :], module]
        path.append(module)
        for target in sorted(graph[module]):
            if found := visit(target):
                return found
        finished.add(path.pop())
        return []

    return next((found for module in sorted(graph) if (found := visit(module))), [])


def graph_of(sources):
    """Module to those of `sources` that it imports; `sources`: name to (text, is package)."""
    return {
        name: {target for target in imports_of(text, name, package) if target in sources} - {name}
        for name, (text, package) in sources.items()
    }


def test_the_assembled_package_has_floors_and_no_circles(wheel):
    """Read from the wheel, where the three folders are one package."""
    with zipfile.ZipFile(wheel) as archive:
        sources = {}
        for file in archive.namelist():
            if file.endswith(".py"):
                name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                sources[name] = archive.read(file).decode(), file.endswith("__init__.py")
    graph = graph_of(sources)
    assert len(graph) == len(SOURCES)
    assert sum(map(len, graph.values())) > 2 * len(graph)  # the imports were really read
    assert upward(graph) == []
    assert circle(graph) == []


def test_modules_named_by_a_string_are_those_of_the_two_tables():
    """A string hides an import from type checkers and from the test above."""
    pattern = re.compile(r"import_module\((.*?)[,)]")
    found = {module_name(path): pattern.findall(path.read_text()) for path in SOURCES}
    assert {name for name, calls in found.items() if calls} <= BY_NAME


BY_NAME = {
    "maskco_fast.cli",  # COMMANDS
    "maskco_fast.commands.doctor",  # Numba's threading layers
    "maskco_fast.loaders",  # the public names
    "maskco_fast.loaders.adapters.lightning",  # PACKAGES, Lightning's two
    "maskco_fast.loaders.factory",  # LOADERS
    "maskco_fast.loggers",  # the trackers, which are optional packages
}
"""Modules that import what a table names, each downward."""


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("maskco_fast.kernels.x", "from ..loaders.batch import Batch", True),
        ("maskco_fast.kernels.x", "def f():\n    import maskco_fast.trainer", True),
        ("maskco_fast.kernels.x", "from .. import loaders", True),
        ("maskco_fast.kernels.x", "from . import plan\nimport numpy", False),
        ("maskco_fast.kernels.jpeg.x", "from ...loaders.batch import Batch", True),
        ("maskco_fast.kernels.jpeg.x", "from ..plan import plan", False),
        ("maskco_fast.loaders.x", "from maskco_fast import trainer", True),
        ("maskco_fast.loaders.x", "from ..trainer import train", True),
        ("maskco_fast.loaders.x", "from ..kernels.plan import plan\nfrom .batch import A", False),
        ("maskco_fast.x", "from maskco_fast.loaders import Batch", False),
    ],
)
def test_the_check_of_floors_can_fail(name, source, found):
    others = ("kernels", "kernels.plan", "loaders", "loaders.batch", "trainer")
    sources = {f"maskco_fast.{other}": ("", False) for other in others}
    assert bool(upward(graph_of({**sources, name: (source, False)}))) is found


def test_the_check_of_circles_can_fail():
    chain = {"maskco_fast.a": ("from maskco_fast import b", False), "maskco_fast.b": ("", False)}
    assert circle(graph_of(chain)) == []
    chain["maskco_fast.b"] = ("def f():\n    from maskco_fast.a import g", False)
    assert circle(graph_of(chain)) == ["maskco_fast.a", "maskco_fast.b", "maskco_fast.a"]


def test_no_folder_is_crowded_or_deep():
    """About ten files a folder, two levels below the top at most."""
    counts = collections.Counter(path.parent.relative_to(ROOT) for path in SOURCES)
    assert {folder: count for folder, count in counts.items() if count > 15} == {}
    assert max(len(folder.parts) for folder in counts) <= 2


PYPI_NAMES = {
    "PIL": "pillow",
    "nvidia": "nvidia-dali-cuda130",
    "llvmlite": "numba",
    "triton": "torch",
    "botocore": "s3fs",
    "yarl": "aiohttp",
    "kornia_rs": "kornia-rs",
}
"""Import name to the distribution that brings it, where they differ."""

CHECKOUTS = {"vissl", "classy_vision"}
"""Imported by their adapter alone, which is used inside a checkout of VISSL."""


def test_every_import_is_a_declared_dependency():
    declared = {
        re.split(r"[^A-Za-z0-9._-]", one)[0].lower()
        for one in importlib.metadata.requires("maskco-fast") or ()
    }
    used = {
        module.split(".")[0]
        for path in SOURCES
        for module in imports_of(path.read_text(), module_name(path), path.stem == "__init__")
    }
    foreign = used - set(sys.stdlib_module_names) - {"maskco_fast"} - CHECKOUTS
    assert {PYPI_NAMES.get(name, name).lower() for name in foreign} <= declared


def test_sources_are_python_3_10():
    for path in SOURCES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's path, built from a copy, so that no build folder is left in the repository."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="setuptools>=77 builds the wheel without a download"
    )
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    build = (
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
    )
    run("-m", "pip", *build, str(folder))
    (path,) = folder.glob("maskco_fast-*.whl")
    return path


def test_wheel_holds_every_source_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        code = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {
            name.split(".dist-info/")[1]: name
            for name in archive.namelist()
            if ".dist-info/" in name
        }
        assert code == {"maskco_fast/py.typed", *(installed(path) for path in SOURCES)}
        assert archive.read(info["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert b"maskco-fast = maskco_fast.cli:main" in archive.read(info["entry_points.txt"])
        assert b"License-Expression: Apache-2.0" in archive.read(info["METADATA"])


def test_wheel_imports_from_itself(wheel, tmp_path):
    """The assembled layout works without the repository: relative imports between the folders
    resolve."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import maskco_fast.kernels.plan as a, maskco_fast.loaders as b\n"
        "print(a.__file__); print(b.__file__)"
    )
    out = run("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert out.split() == [
        str(tmp_path / "maskco_fast" / name) for name in ("kernels/plan.py", "loaders/__init__.py")
    ]


def test_readme_names_commands_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE)) | set(
        re.findall(r"`make ([a-z-]+)`", readme)
    )
    assert {"train", "test"} <= named <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []
