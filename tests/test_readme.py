"""The README is true: its Python runs, its commands print what it shows, its paths exist.

`SMA_UPDATE_README=1 python -m pytest tests/test_readme.py` writes what the commands print now into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sma_compiler
from sma_compiler.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(Path(sma_compiler.__file__).parents[1])}
README = ROOT / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TYPO = "op typo(q, k, v):\n    return attend(casual, q, k, v)\n"


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCKS if found == language]


def test_every_block_has_a_test() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "console", "python", ""}


def test_python_blocks_run_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for body in blocks("python"):
        exec(compile(body, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("1 ")


@pytest.mark.parametrize("body", blocks("console"))
def test_console_blocks_print_what_they_show(body: str, tmp_path: Path) -> None:
    command, shown = body.split("\n", 1)
    assert command.startswith("$ sma ")
    (tmp_path / "typo.sma").write_text(TYPO)
    for folder in ("examples", "sma_compiler"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    arguments = [sys.executable, "-m", "sma_compiler", *command.removeprefix("$ sma ").split()]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=ENV, check=False)
    printed = (done.stdout + done.stderr).strip()
    if os.environ.get("SMA_UPDATE_README"):
        README.write_text(
            README.read_text().replace(f"```console\n{body}```", f"```console\n{command}\n{printed}\n```")
        )
    else:
        assert printed == shown.strip()


def test_specs_are_those_of_the_examples() -> None:
    for body in blocks(""):
        assert any(path.read_text() == body for path in (ROOT / "examples").glob("*.sma"))


def test_the_set_up_commands_name_what_exists() -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    first, second = blocks("sh")
    for command in (first, second):
        (extra,) = re.findall(r'pip install "\$SMA\[(\w+)\]"', command)
        assert extra in extras
    script, *flags = re.findall(r"examples/\w+\.py|--\w+", first)
    help_text = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd="/", env=ENV, check=True
    ).stdout
    assert all(flag in help_text for flag in flags)
    assert "pytest" in second


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", TEXT, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (target[1:] in headings) if target.startswith("#") else (ROOT / target).is_file()


def test_commands_of_the_table_exist() -> None:
    named = set(re.findall(r"`sma (\w+)", TEXT))
    assert named <= set(COMMANDS)
    assert {"list", "check", "explain", "inspect", "verify", "draw", "bench", "doctor"} <= named
