"""The package works installed: from a wheel, away from the checkout, and editable."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GRAMMAR = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "grammar").rglob("*") if path.is_file())
OFFLINE = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]

USE = """
import sys
import torch
import sma_compiler as sma
print(sma.__file__)
assert len(sma.library()) >= 25
op = sma.library("retention")
q = torch.ones(1, 3, 2, 4)
print(tuple(op(q, q, q, gamma=torch.full((2,), 0.5)).shape))
"""


def run(*command: str | Path, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_grammar_the_types_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "sma = sma_compiler.cli.main:app" in archive.read(entry).decode()
    assert {f"sma_compiler/{name}" for name in GRAMMAR} <= set(names)
    assert "sma_compiler/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "grammar/"))]


def test_installed_copy_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", tmp_path, wheel)
    file, shape = run(sys.executable, "-c", USE, PYTHONPATH=str(tmp_path)).splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert shape == "(1, 3, 2, 4)"


def test_editable_install_works(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    python = tmp_path / "bin" / "python"
    here = sysconfig.get_path("purelib")
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "-e", ROOT, PYTHONPATH=here)
    (site / "zz_tests_environment.pth").write_text(here)  # torch and the rest, after the editable install
    file, shape = run(python, "-c", USE).splitlines()
    assert Path(file) == PACKAGE_FILE
    assert shape == "(1, 3, 2, 4)"


PACKAGE_FILE = ROOT / "sma_compiler" / "__init__.py"


def test_import_is_quick() -> None:
    """`import sma_compiler` costs less than 0.3 s beyond `import torch`, and loads nothing that only some uses need."""
    code = (
        "import sys, time, torch; start = time.process_time(); import sma_compiler; "
        "print(time.process_time() - start); print(*sys.modules)"
    )
    runs = [run(sys.executable, "-c", code, PYTHONPATH=str(ROOT)).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    extra = {"lark", "sympy", "rich", "typer", "matplotlib", "hypothesis"} & set(runs[0][1].split())
    assert not extra
