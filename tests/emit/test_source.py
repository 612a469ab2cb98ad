"""Emitted files: golden text, style, what they import, what is refused."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from kernel import pair_specs
from kernel.channel_specs import CHANNEL_LIBRARY, CHANNEL_SPECS
from kernel.channel_specs import compiled as by_channel
from kernel.gradient_specs import GRADIENT_SPECS
from kernel.specs import LIBRARY, SPECS, compiled

from sma_compiler.driver import compile_source
from sma_compiler.emit.source import DTYPES, TARGETS
from sma_compiler.interface import library
from sma_compiler.kernel.errors import NoTritonKernel, UnknownOption
from sma_compiler.source import Source

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}
LONG = {"B": 1, "T": 131072, "H": 24, "K": 128, "V": 64}


RECURRENT = ("linear_attention_normalized", "mamba2", "rwkv6", "mamba1", "rwkv4")
SCANS = ("mamba1", "scan", "strict_both", "closed_both", "late_both", "both")
"""Ops of gates with both axes."""
COLUMNS = ("rwkv4", "columns")
"""Ops of sums in units of exponentials."""
QUADRATIC = ("attention", "alibi", "forgetting")


@pytest.mark.parametrize(
    ("name", "plan"), [*((name, "chunked") for name in (*LIBRARY, "gla")), *((name, "recurrent") for name in RECURRENT)]
)
def test_text_is_golden(name: str, plan: str, request: pytest.FixtureRequest) -> None:
    text = (compiled(name) if name in LIBRARY else library(name)).source(plan, SHAPE)
    path = GOLDEN / (f"{name}.py.txt" if plan == "chunked" else f"{name}_{plan}.py.txt")
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", QUADRATIC)
def test_quadratic_text_is_golden(name: str, request: pytest.FixtureRequest) -> None:
    text = library(name).source("quadratic", SHAPE)
    path = GOLDEN / f"{name}.py.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


INVENTED = {
    "faded": """op faded(q, k, v, g: [time, head], slope: [head], s: real):
    return attend(decay(g) * alibi(slope), q, k, v, normalize=softmax, scale=s)
""",
    "delta_softmax": """op delta_softmax(q, k, v, f: [time, head]):
    u = solve(strict * decay(logsigmoid(f)), l2norm(k), l2norm(k), v)
    return attend(decay(logsigmoid(f)), q, k, u, normalize=softmax)
""",
    "comba": """op comba(q, k, v, g: [time, head], beta: [time, head], d: [head]):
    u = solve(strict * decay(g), beta * l2norm(k), l2norm(sigmoid(d) * k), beta * v)
    return attend(decay(g), q - d * k, k, u)
""",
    "last_solve": """op last_solve(k, v, gate: [time, head], beta: [time, head], strength: [time], decays: [head]):
    o = attend(decay(gate), k, k, v)
    return solve(strict * retention(decays), beta * l2norm(k), l2norm(k), strength * o)
""",
}
"""Ops that lay text out as no op of the library does."""
SOLVED = ("delta_net", "gated_delta_net", "kda", "rwkv7")
"""Ops of several contractions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("emitted")
    ops = [compiled(name) for name in (*LIBRARY, *SPECS, *GRADIENT_SPECS)]
    ops += [by_channel(name) for name in (*CHANNEL_LIBRARY, *CHANNEL_SPECS) if name not in (*SCANS, *COLUMNS)]
    for op in ops:
        name = op.name
        for number, shape in enumerate((SHAPE, LONG)):
            for dtype in DTYPES:
                op.save(found / f"{name}_{number}_{dtype}.py", "chunked", shape, dtype)
        op.save(found / f"{name}_recurrent.py", "recurrent", SHAPE)
    for name, text in INVENTED.items():
        plan = "quadratic" if name == "faded" else "chunked"
        compile_source(Source(text)).save(found / f"{name}.py", plan, SHAPE)
    for name in SOLVED:
        library(name).save(found / f"{name}.py", "chunked", SHAPE)
    for name in (*SCANS, *COLUMNS):
        for number, shape in enumerate((SHAPE, LONG)):
            by_channel(name).save(found / f"{name}_{number}_recurrent.py", "recurrent", shape)
    for name in COLUMNS:
        by_channel(name).save(found / f"{name}_chunked.py", "chunked", LONG)
    for name in (*pair_specs.LIBRARY, *pair_specs.PAIR_SPECS):
        pair_specs.compiled(name).save(found / f"{name}_quadratic.py", "quadratic", SHAPE)
    return found


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_finds_nothing(command: list[str], folder: Path) -> None:
    ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(folder)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_import_torch_and_triton_alone(folder: Path) -> None:
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert found == {"torch", "triton", "triton.language"}
        assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_file(target: str) -> None:
    assert "def mamba2(" in compiled("mamba2").source(target=target)


def test_the_launcher_takes_the_parameters_of_the_spec() -> None:
    tree = ast.parse(compiled("mamba2").source())
    launchers = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    parameters = ["q", "k", "v", "dt", "a", "bias", "d"]
    for name, given in (("mamba2", parameters), ("mamba2_backward", ["dy", *parameters])):
        assert [arg.arg for arg in launchers[name].args.args] == given
        assert ast.get_docstring(launchers[name])


def test_names_and_comments_of_a_spec_stay_what_they_are() -> None:
    spec = (
        "# \\u2028 '''import os\\r__import__('os')\n"
        "op f(q, k, v, tl: [time, head], torch: [head], load_ptr: [time, head], n_v: [head]):\n"
        '    return attend(decay(tl * torch), q, k, load_ptr * v) + n_v * v  # """\n'
    )
    tree = ast.parse(compile_source(Source(spec, "names")).source())
    assert not any(isinstance(node, ast.Name) and node.id == "__import__" for node in ast.walk(tree))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hydra", "kernels exist for one `attend`"),
    ],
)
def test_what_has_no_kernel_is_refused(name: str, reason: str) -> None:
    with pytest.raises(NoTritonKernel, match=reason):
        library(name).source()


def test_gates_of_both_axes_are_passed_in_parts() -> None:
    many = {"B": 8, "T": 4096, "H": 5120, "K": 16}
    texts = {plan: library("mamba1").source(plan, many) for plan in ("chunked", "recurrent", "auto")}
    texts["long"] = library("mamba1").source("auto", {**many, "B": 1, "H": 512})
    for plan in ("chunked", "long"):
        assert "# plan: chunked, positions in parts\n" in texts[plan]
        assert texts[plan].count("local_states_kernel") > 1
    assert all("# plan: recurrent\n" in texts[plan] for plan in ("recurrent", "auto"))


def test_a_state_too_large_is_refused() -> None:
    with pytest.raises(NoTritonKernel, match="fits on chip"):
        compiled("retention").source(shape={"K": 512})


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"target": "sm_75"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UnknownOption):
        compiled("retention").source(**options)


@pytest.mark.parametrize(
    ("body", "kernels", "gradients"),
    [
        ("attend(decay(g) * alibi(a), q, k, v)", ["chunked", "recurrent", "quadratic"], True),
        ("attend(decay(g) * (j < 3), q, k, v)", ["quadratic"], True),
        ("attend(causal, q, k, v, normalize=sum) * silu(y)", ["chunked", "recurrent", "quadratic"], False),
    ],
)
def test_every_mask_has_kernels_or_a_reason(body: str, kernels: list[str], gradients: bool) -> None:
    params = "q, k, v, g: [time, head], a: [head], y: [time, head, value]"
    op = compile_source(Source(f"op f({params}):\n    return {body}\n"))
    found = op.program.kernels
    assert [plan for plan, reason in found.refusals().items() if not reason] == kernels
    assert all(found.has_gradients(plan) is gradients for plan in kernels)
    assert "triton" in str(op.explain())
