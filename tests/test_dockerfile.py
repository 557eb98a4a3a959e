"""The Dockerfile, read and not built: what it copies, and the commands that it runs."""

import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (word, rest), continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]  # type: ignore[misc]


def test_what_is_copied_exists_and_is_everything(instructions):
    """Each file and folder of the repository is copied to the place that it has here."""
    copied = set()
    for word, rest in instructions:
        if word == "COPY":
            *sources, target = [part for part in shlex.split(rest) if not part.startswith("--")]
            for source in sources:
                path = ROOT / source
                assert path.exists(), source
                assert target == (f"{source}/" if path.is_dir() else "./")
                copied.add(source)
    ignored = [*(ROOT / ".gitignore").read_text().split(), ".git", ".pre-commit-config.yaml"]
    for path in ROOT.iterdir():
        if not any(path.match(pattern.strip("/")) for pattern in ignored):
            assert path.name in copied
    dockerignore = (ROOT / ".dockerignore").read_text().split()
    assert not copied & set(dockerignore)


def test_the_readmes_commands_run_on_a_supported_python(instructions):
    words = dict(instructions)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test", "install"} <= set(targets)
    assert words["CMD"] == '["make", "train"]'
    assert ("RUN", "make install") in instructions
    version = re.match(r"python:3\.(\d+)-", words["FROM"])
    assert version
    assert f"Python :: 3.{version[1]}" in (ROOT / "pyproject.toml").read_text()


def test_the_installation_has_the_sources_that_it_needs(instructions):
    """Before `make install` everything stands there that pyproject.toml names."""
    at = instructions.index(("RUN", "make install"))
    before = " ".join(rest for word, rest in instructions[:at] if word == "COPY")
    for name in ("pyproject.toml", "README.md", "LICENSE", "kernels", "loaders", "maskco_fast"):
        assert f" {name} " in f" {before} "
