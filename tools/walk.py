"""How far a call walks, and other counts of how the package is built.

    python -m tools.walk

Run it from a checkout, with NumPy, torch and llvmlite installed.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(__file__).parent.parent / "kldiv"
MANY = 12
"""Parameters beyond which a function is counted."""


# ---- walks ---------------------------------------------------------------------------------------


def walk(call: Callable[[], Any]) -> tuple[list[str], int]:
    """Return the files of the package that a call enters, and how often it changes file."""
    files: list[str] = []
    moves, last = 0, ""

    def step(frame: Any, event: str, _: Any) -> None:
        nonlocal moves, last
        path = Path(frame.f_code.co_filename)
        if event != "call" or PACKAGE not in path.parents:
            return
        name = path.relative_to(PACKAGE).as_posix()
        if name not in files:
            files.append(name)
        moves, last = moves + (name != last), name

    call()  # what is loaded, compiled and resolved once
    sys.setprofile(step)
    try:
        call()
    finally:
        sys.setprofile(None)
    return files, moves


def walks() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls of each way from arrays to a loop, with a name."""
    import numpy as np  # noqa: PLC0415 - counting lines needs none of these
    import torch  # noqa: PLC0415

    import kldiv  # noqa: PLC0415

    grad = torch.autograd.grad

    x = np.log(np.full((64, 512), 1 / 512, np.float32))
    y = np.exp(x)
    yield "NumPy, CPU kernel", lambda: kldiv.kl_div(x, y)
    yield "NumPy, formulas", lambda: kldiv.kl_div(x[:4], y[:4])
    s, t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
    small = s.detach()[:4].clone().requires_grad_()
    yield "torch with gradient, CPU kernel", lambda: grad(kldiv.kl_div(s, t), s)
    yield "torch with gradient, formulas", lambda: grad(kldiv.kl_div(small, t[:4]), small)


# ---- circles -------------------------------------------------------------------------------------


def circles() -> list[list[str]]:
    """Return the groups of files that import one another, lazily and for types included."""
    graph = {module: _imports(path) for module, path in _modules().items()}
    graph = {name: {each for each in found if each in graph} for name, found in graph.items()}
    reach: dict[str, set[str]] = {}
    for name in graph:
        found: set[str] = set()
        rest = [name]
        while rest:
            for each in graph[rest.pop()] - found:
                found.add(each)
                rest.append(each)
        reach[name] = found
    groups = {
        tuple(sorted(each for each in graph if name in reach[each] and each in reach[name]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever it does; a package counts by its name."""
    found = set()
    modules = _modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found


# ---- sizes ---------------------------------------------------------------------------------------


def functions() -> Iterator[tuple[str, int]]:
    """Yield the name of each function with the number of its parameters."""
    for module, path in sorted(_modules().items()):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                own = node.args
                every = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
                yield f"{module}.{node.name}", sum(each is not None for each in every)


def lines() -> Counter[str]:
    """Return how many lines each part of the package has."""
    found: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts
        found[part[0]] += len(path.read_text(encoding="utf-8").splitlines())
    return found


def methods_of_backend() -> list[str]:
    """Return the methods that an adapter may override, of the class `Backend` itself."""
    tree = ast.parse((PACKAGE / "backends" / "base.py").read_text(encoding="utf-8"))
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Backend")
    return [node.name for node in found.body if isinstance(node, ast.FunctionDef)]


def main() -> None:
    """Print all counts."""
    write = sys.stdout.write
    for name, call in walks():
        files, moves = walk(call)
        write(f"{name}: {len(files)} files, {moves} moves\n  {' '.join(files)}\n")
    write(f"methods of Backend: {len(methods_of_backend())}\n")
    for group in (found := circles()):
        write(f"import circle: {' '.join(group)}\n")
    write(f"import circles: {len(found)}\n")
    large = [f"{name} ({count})" for name, count in functions() if count > MANY]
    write(f"functions with more than {MANY} parameters: {len(large)}\n  {' '.join(large)}\n")
    counts = lines()
    write(f"lines: {sum(counts.values())}\n")
    for part in ("backends", "kernels", "formulas"):
        write(f"  {part}: {counts[part]}\n")


if __name__ == "__main__":
    main()
