"""Imports go one way: a module imports only from its own layer and those before it, in no cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sma_compiler"

LAYERS = [
    "source",
    "errors",
    "mistakes",
    "ir.nodes",
    "ir.graph",
    "ir.roles",
    "ir.canonical",
    "call_errors",
    "backend_errors",
    "syntax",
    "ir",
    "mask",
    "facts",
    "plan",
    "kernel",
    "emit",
    "target",
    "oracle",
    "reference",
    "torch_plans",
    "verify",
    "runtime",
    "tune",
    "runtime.op",
    "driver_errors",
    "driver",
    "interface",
    "",  # the package's own interface
    "verify.calibrate",
    "draw",
    "bench",
    "cli",
    "__main__",
]
"""Lowest first. A name stands for a module or a package; the longest that fits a module is its layer."""

APART = [("oracle", "torch_plans"), ("reference", "torch_plans"), ("oracle", "mask"), ("reference", "mask")]
"""The reference shares no code with the plans that it judges."""

HEAVY = {"torch._dynamo", "sympy", "lark", "matplotlib", "rich", "typer", "hypothesis", "triton"}
"""Slow to import or optional: loaded where they are used, inside functions, outside the folders below."""
HEAVY_PARTS = {"sma_compiler.emit", "sma_compiler.tune", "sma_compiler.runtime.forecast"}
"""Parts of this package that are loaded likewise: calls on a CPU need none of them."""
LIBRARIES = ("library", "library_channels", "library_stabilised", "library_host", "library_pairs", "library_solve")
MAY_LOAD_HEAVY = ("cli", "bench", "draw", "verify", *(f"kernel.{name}" for name in LIBRARIES))


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def layer(module: str) -> int:
    fitting = [name for name in LAYERS if name == module or (name and module.startswith(name + "."))]
    assert fitting, f"{module} has no layer"
    return LAYERS.index(max(fitting, key=len))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every absolute name that is imported, with whether that is inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                yield f"{child.module}.{alias.name}", inside
        elif not is_type_checking(child):
            yield from imports(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def own(name: str) -> str | None:
    """The module of this package that an imported name is, or comes from."""
    if name.split(".")[0] != "sma_compiler":
        return None
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def own_imports(module: str) -> set[str]:
    found = {own(name) for name, _ in imports(tree(module))}
    return {name for name in found if name is not None}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_downward(module: str) -> None:
    upward = {name for name in own_imports(module) if layer(name) > layer(module)}
    assert not upward


@pytest.mark.parametrize("module", MODULES)
def test_functions_import_heavy_packages_alone(module: str) -> None:
    for name, inside in imports(tree(module)):
        package = "torch._dynamo" if name.startswith("torch._dynamo.") else name.split(".")[0]
        if inside:
            assert package in HEAVY or name.startswith(tuple(HEAVY_PARTS)), f"import of {name} inside a function"
        elif not module.startswith(MAY_LOAD_HEAVY):
            assert package not in HEAVY, f"import of {name} when the module loads"


@pytest.mark.parametrize("module", MODULES)
def test_no_import_cycles(module: str) -> None:
    seen: set[str] = set()
    stack = list(own_imports(module) - {module})
    while stack:
        other = stack.pop()
        assert other != module
        if other not in seen:
            seen.add(other)
            stack.extend(own_imports(other))


@pytest.mark.parametrize(("judge", "judged"), APART)
def test_the_reference_stands_apart(judge: str, judged: str) -> None:
    for module in MODULES:
        if layer(module) == LAYERS.index(judge):
            assert not {name for name in own_imports(module) if name.startswith(judged)}
        if layer(module) == LAYERS.index(judged):
            assert not {name for name in own_imports(module) if name.startswith(judge)}


@pytest.mark.parametrize(
    "path", [path for folder in ("sma_compiler", "tests", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 500
