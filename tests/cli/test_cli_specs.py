"""`sma list`, `check`, `doctor`, and what all commands share: help, errors, exit status, plain output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import sma_compiler
from sma_compiler.cli.common import BadShape, parse_shape
from sma_compiler.cli.main import COMMANDS, app
from sma_compiler.syntax.locate import library_names

ENV = {**os.environ, "PYTHONPATH": str(Path(sma_compiler.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
BAD = "op a(q, k, v):\n    return attend(casual, q, k, w)\n"
GOOD = "# first\nop a(q, k, v):\n    return attend(causal, q, k, v)\n\nop b(v):\n    return causal @ v\n"

sma = CliRunner()


def process(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m sma_compiler` as a user runs it, away from the checkout, its output piped."""
    command = [sys.executable, "-m", "sma_compiler", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENV, cwd="/", check=False)


def test_help_names_every_command_and_loads_little() -> None:
    """Beyond torch, which importing the package loads, help costs the command line alone."""
    code = (
        "import sys, time, torch; start = time.process_time()\n"
        "from sma_compiler.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - start); print(*{name.split('.')[0] for name in sys.modules})\n"
        "print(*(name for name in sys.modules if name.startswith('sma_compiler.')))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True).stdout
        for _ in range(3)
    ]
    *help_lines, _, packages, own = runs[0].splitlines()
    assert all(any(f" {name} " in line for line in help_lines) for name in COMMANDS)
    assert not {"sympy", "lark", "matplotlib"} & set(packages.split())
    assert not {"sma_compiler.driver", "sma_compiler.torch_plans.run"} & set(own.split())
    assert min(float(run.splitlines()[-3]) for run in runs) < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_the_help_that_the_list_shows(name: str) -> None:
    module, line = COMMANDS[name]
    command = typer.main.get_group(import_module(f"sma_compiler.cli.{module}").app).commands[name]
    assert command.help == line
    assert sma.invoke(app, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("arguments", [["chek"], ["check"], ["check", "--nonsense", "mamba2"], ["draw", "mamba2"]])
def test_bad_usage_is_status_2(arguments: list[str]) -> None:
    done = sma.invoke(app, arguments)
    assert done.exit_code == 2
    assert "Error" in done.stderr


def test_a_typing_slip_in_a_command_is_answered() -> None:
    assert "Did you mean 'check'" in sma.invoke(app, ["chek"]).stderr


def test_list_names_the_library_with_plans() -> None:
    rows = json.loads(sma.invoke(app, ["list", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(library_names())
    (mamba2,) = [row for row in rows if row["name"] == "mamba2"]
    assert mamba2["parameters"][3] == "dt: [batch, time, head]"
    assert mamba2["plans"] == ["quadratic", "recurrent", "chunked"]
    assert "Mamba-2" in mamba2["doc"]
    text = sma.invoke(app, ["list"]).stdout
    assert all(name in text for name in library_names())


def test_check_of_good_files(tmp_path: Path) -> None:
    path = tmp_path / "good.sma"
    path.write_text(GOOD)
    done = sma.invoke(app, ["check", str(path), "mamba2"])
    assert done.exit_code == 0
    assert done.stdout == f"{path}: a, b: fine\nmamba2: mamba2: fine\n"


def test_check_prints_every_mistake_with_a_caret_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "bad.sma"
    path.write_text(BAD)
    done = process("check", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{path}:2:19: " in done.stderr
    assert "\n                    ^^^^^^\n" in done.stderr
    assert f"{path}:2:33: " in done.stderr
    assert "Traceback" not in done.stderr


def test_check_json_places_every_mistake() -> None:
    done = sma.invoke(app, ["check", "-", "--json"], input=BAD)
    assert done.exit_code == 2
    (result,) = json.loads(done.stdout)
    assert not result["ok"]
    assert [(error["kind"], error["line"], error["column"]) for error in result["errors"]] == [
        ("UnknownName", 2, 19),
        ("UnknownName", 2, 33),
    ]
    assert result["errors"][0]["hint"] == "did you mean `causal`?"


def test_check_finds_mistakes_that_only_facts_show() -> None:
    text = "op a(q, k, v, s: [head]):\n    return attend(causal * s, q, k, v, normalize=softmax)\n"
    done = sma.invoke(app, ["check", "-"], input=text)
    assert done.exit_code == 2
    assert "softmax" in done.stderr
    both = sma.invoke(app, ["check", "-"], input=f"{text}\nop b(q):\n    return zeta\n")
    assert "softmax" in both.stderr
    assert "zeta" in both.stderr


def test_check_goes_on_after_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.sma"
    path.write_text(BAD)
    done = sma.invoke(app, ["check", "nothing.sma", "mamba2", str(path)])
    assert (done.exit_code, done.stdout) == (2, "mamba2: mamba2: fine\n")
    assert "nothing.sma: no such file" in done.stderr
    assert f"{path}:2:33: " in done.stderr
    results = json.loads(sma.invoke(app, ["check", "nothing.sma", "mamba2", "--json"]).stdout)
    assert [(result["ok"], [error["kind"] for error in result["errors"]]) for result in results] == [
        (False, ["NoSuchSpec"]),
        (True, []),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.sma", "no such file, and no such spec"),
        ("mamba", "did you mean mamba"),
        ("/", "no such file"),
    ],
)
def test_a_missing_spec_is_one_clear_line(name: str, said: str) -> None:
    done = sma.invoke(app, ["check", name])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.sma"
    path.write_bytes(b"op a(v):\xff\xfe")
    done = sma.invoke(app, ["check", str(path)])
    assert done.exit_code == 2
    assert "UTF-8" in done.stderr


def test_a_file_that_cannot_be_written() -> None:
    done = sma.invoke(app, ["draw", "mamba2", "-o", "/nowhere/at/all.png"])
    assert done.exit_code == 2
    assert done.stderr == "/nowhere/at/all.png: No such file or directory\n"


def test_doctor_reports_versions_devices_and_cache() -> None:
    report = json.loads(sma.invoke(app, ["doctor", "--json"]).stdout)
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["versions"]["torch"]
    assert "cpu" in report["devices"]
    assert report["cache"]["folder"]
    assert "versions" in sma.invoke(app, ["doctor"]).stdout


@pytest.mark.parametrize("arguments", [["list"], ["doctor"], ["explain", "mamba2"], ["check", "nope"]])
def test_piped_output_is_plain(arguments: list[str]) -> None:
    done = process(*arguments)
    assert "\x1b" not in done.stdout + done.stderr


def test_parse_shape() -> None:
    assert parse_shape("B=2, T=64,K=8,G=2,lag=5") == {"batch": 2, "time": 64, "key": 8, "group": 2, "lag": 5}
    assert parse_shape(None) == {}
    for bad in ("T", "T=0", "T=-1", "T=x", "Q=3", "T=1.5"):
        with pytest.raises(BadShape):
            parse_shape(bad)
