"""The documents: their links, files, commands and options exist, and the README stays short."""

import ast
import dataclasses
import importlib
import pathlib
import re
import typing

import pytest

from maskco_fast.cli import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "kernels|loaders|maskco_fast|benchmarks|tests|docs"
OTHERS = re.compile(r"^.*\b(?:torchrun|apt-get|kubectl|sbatch|pytest)\b.*$", re.MULTILINE)
"""Lines with options of other programs."""


def _text(document: pathlib.Path) -> str:
    return document.read_text(encoding="utf-8")


def _anchors(document: pathlib.Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", _text(document), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def _options(config: typing.Any, prefix: str = "") -> set[str]:
    """The command line options that are made of a configuration dataclass."""
    found = set()
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        found |= {f"--{name}", f"--no-{name}"}
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _options(hints[field.name], f"{name}.")
    return found


@pytest.fixture(scope="module")
def options() -> set[str]:
    found = {"--help", "--version"}
    for command in COMMANDS:
        function = getattr(importlib.import_module(command.module), command.name)
        found |= _options(typing.get_type_hints(function)["config"])
    for script in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py")]:
        source = _text(script)
        found |= set(re.findall(r'"(--[a-z-]+)"', source))  # argparse
        fields = re.findall(r"^    (\w+): ", source, re.MULTILINE)  # a dataclass, for tyro
        found |= {f"--{field.replace('_', '-')}" for field in fields}
    return found


def test_readme_is_short():
    """At most 120 lines, and 900 words outside code."""
    readme = _text(ROOT / "README.md")
    assert readme.count("\n") <= 120
    assert len(re.sub(r"```.*?```", "", readme, flags=re.DOTALL).split()) <= 900


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
class TestDocument:
    def test_links_and_anchors_exist(self, document):
        broken = []
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", _text(document)):
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(link)
        assert broken == []

    def test_files_and_modules_exist(self, document):
        text = _text(document)
        paths = re.findall(rf"(?:`|python )((?:{FOLDERS})/[\w./-]*)", text)
        modules = re.findall(r"python -m (benchmarks[\w.]+)", text)
        wanted = [path for path in paths if "NAME" not in path]
        files = [module.replace(".", "/") for module in modules]
        wanted += [f if (ROOT / f / "__main__.py").exists() else f"{f}.py" for f in files]
        assert [path for path in wanted if not (ROOT / path).exists()] == []

    def test_commands_and_options_exist(self, document, options):
        text = _text(document)
        names = set(re.findall(r"maskco-fast ([a-z]+)\b", text)) - {"developers"}
        assert names <= {command.name for command in COMMANDS}
        named = set(re.findall(r"(?<![\w-])(--[a-z][\w.-]*[\w])", OTHERS.sub("", text)))
        assert named <= options

    def test_python_snippets_parse(self, document):
        for snippet in re.findall(r"```python\n(.*?)```", _text(document), re.DOTALL):
            ast.parse(snippet)
