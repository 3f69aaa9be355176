"""The house rules, proved on the syntax trees and in fresh interpreters."""

from __future__ import annotations

import ast
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest
from processes import python

import kldiv
from tools import walk

PACKAGE = Path(kldiv.__file__).parent
# A namespace names functions, and computes nothing.
ADAPTERS = sorted(
    path for path in (PACKAGE / "backends").rglob("*.py") if not path.stem.endswith("namespace")
)
FORMULAS = sorted((PACKAGE / "formulas").glob("*.py"))
FRAMEWORKS = set(
    "torch jax jaxlib mlx cupy dask array_api_strict scipy llvmlite numba triton".split()
)

ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
MATHEMATICS = set(
    """
    abs add addcmul amax amin bmm clamp clip cos cosh cross_entropy cumsum diff digamma div
    divide dot einsum entr entropy erf exp exp2 expm1 floor gammaln inner kl_div kldivloss
    lgamma log log10 log1p log2 log_softmax logaddexp logsumexp matmul max maximum mean min
    minimum mul multiply neg negative nll_loss norm outer polygamma pow power prod reciprocal
    rel_entr round rsqrt sigmoid sign sin sinh softmax softplus sqrt square std sub subtract sum
    tan tanh tensordot true_divide var vecdot where xlog1py xlogy
    """.split()
)


def is_text(node: ast.AST) -> bool:
    """Whether an expression handles strings."""
    parts = list(ast.walk(node))
    return any(isinstance(n, ast.JoinedStr) for n in parts) or any(
        isinstance(n, ast.Constant) and isinstance(n.value, str) for n in parts
    )


def computes(node: ast.AST) -> bool:
    """Whether a piece of syntax computes on arrays, or names a function that does."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op):
            return isinstance(op, ARITHMETIC) and not is_text(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return not isinstance(operand, ast.Constant)
        case ast.Attribute(attr=name) | ast.Call(func=ast.Name(id=name)) | ast.alias(name=name):
            return name.lower() in MATHEMATICS
        case ast.Constant(value=str() as name):  # getattr(F, "kl_div") would hide it
            return name.lower() in MATHEMATICS
    return False


def array_mathematics(source: str) -> list[str]:
    """Every piece of a module that computes on arrays rather than handing them on."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if computes(node)]


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_adapters_hold_no_mathematics(path):
    assert array_mathematics(path.read_text(encoding="utf-8")) == []


def imports(source: str) -> set[str]:
    """Names of all modules that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FORMULAS, ids=lambda path: path.stem)
def test_formulas_know_no_framework_and_nothing_above_them(path):
    for name in imports(path.read_text(encoding="utf-8")):
        root = name.partition(".")[0]
        assert root not in FRAMEWORKS | {"numpy", "array_api_compat"}, name
        if root == "kldiv":
            assert name.startswith(("kldiv.formulas", "kldiv._types")), name


LAYERS = {
    "backends": "_heap _types backends config errors formulas kernels",
    "kernels": "_files _heap _types errors formulas kernels",
    "config": "_types backends errors",
    "distributions": "_call _types backends distributions errors formulas",
    "distributions/closed_forms": "_types distributions errors formulas",
    "errors": "",
    "measures": "_arguments _call _docstrings _types distributions errors formulas frames",
    "readers": "errors readers",
    "streaming": "_files _heap _named _notebook backends errors explanation formulas frames losses "
    "metrics readers sparse_losses streaming",
}
"""Which part of the package may import which."""


def climbs(part: str, source: str) -> list[str]:
    """Names that a module of a part imports from above it, or from what it must not know."""
    names = imports(source)
    own = [name for name in names if name.startswith("kldiv.")]
    allowed = tuple([f"kldiv.{each}" for each in LAYERS[part].split()])
    wrong = [name for name in own if not name.startswith(allowed)]
    return wrong + [name for name in names if name.partition(".")[0] in {"click", "rich"}]


@pytest.mark.parametrize("part", LAYERS)
def test_layers(part):
    paths = sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for path in paths:
        assert climbs(part, path.read_text(encoding="utf-8")) == [], path


def test_a_circle_is_seen(monkeypatch):
    imported = walk._imports

    def more(path):
        return imported(path) | ({"kldiv.streaming.work"} if path.name == "blocks.py" else set())

    monkeypatch.setattr(walk, "_imports", more)
    assert any({"kldiv.streaming.blocks", "kldiv.streaming.work"} <= set(g) for g in walk.circles())


def private(source: str) -> set[str]:
    """Names that a module of the command imports from kldiv and that no user could rely on."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if not is_public(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if not is_public(name)}
    return found


def is_public(name: str) -> bool:
    """Whether a name is the command's own or another package's, a public module, or in one."""
    if not name.startswith("kldiv.") or name.startswith("kldiv.cli"):
        return True
    module, _, attribute = name.removeprefix("kldiv.").partition(".")
    if module not in {*kldiv._MODULES, "diagnosis"}:
        return module in kldiv.__all__ and not attribute
    if not attribute:
        return True
    home = import_module(f"kldiv.{module}")
    named = getattr(home, "__all__", None) or [
        each
        for each, value in vars(home).items()
        if not each.startswith("_") and getattr(value, "__module__", None) == home.__name__
    ]
    return attribute in named


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_uses_public_names_only(path):
    assert private(path.read_text(encoding="utf-8")) == set()


BROKEN = {  # a rule, and lines that break it
    array_mathematics: """
        F.kl_div(x, y)
        xp.log(y)
        from torch.nn.functional import kl_div
        getattr(F, 'kl_div')(x, y)
        y * x
        total += x
        -x
        a @ b
        torch.nn.KLDivLoss()(x, y)
        xp.sum(x)
        x.sum()
    """,
    private: """
        from kldiv.streaming.work import Work
        from kldiv.streaming import work
        import kldiv.streaming.blocks
        from kldiv.readers.numpy_files import read_npy
        from kldiv.formulas import rows
        from kldiv._files import replacing
        from kldiv import _call
        from kldiv.config import current, _process
    """,
    partial(climbs, "streaming"): """
        from kldiv.cli.progress import Progress
        from kldiv.kernels import cpu
        import click
        from rich.text import Text
    """,
    partial(climbs, "readers"): "from kldiv.streaming import compare",
    partial(climbs, "backends"): "from kldiv.losses import kl_div",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_the_rules_can_fail(rule):
    assert not rule("from kldiv import errors\nimport numpy as np")
    for line in dedent(BROKEN[rule]).strip().splitlines():
        assert rule(f"import numpy as np\n{line}\n"), line


STATISTICS = """
    _families densities foreign_densities host lines pair_plot quadrature scipy_names sums
    estimators fitting
""".split()
"""Modules that are no code of arrays and use SciPy."""


def test_a_framework_is_imported_only_in_its_own_adapter():
    modules = (path for path in PACKAGE.rglob("*.py") if "_bench" not in path.parts)
    for path in modules:
        name = path.relative_to(PACKAGE).as_posix()
        allowed = set()
        if name.startswith("backends/"):  # a file or a folder <library>_
            library = name.split("/")[1].removesuffix(".py").removesuffix("_")
            allowed = {"numpy": {"scipy"}}.get(library, {library})
        if name in {"nn.py", "readers/torch_files.py"}:  # the torch modules and files
            allowed = {"torch"}
        if path.stem in STATISTICS:
            allowed = {"scipy"}
        if name.startswith("kernels/cpu/"):
            allowed = {"llvmlite"}
        if name == "kernels/cuda/compiling.py":
            allowed = {"cupy"}
        if name.startswith("kernels/triton/"):
            allowed = {"torch", "triton"}
        if name.startswith("kernels/pallas/"):
            allowed = {"jax"}
        roots = {name.partition(".")[0] for name in imports(path.read_text(encoding="utf-8"))}
        assert roots & FRAMEWORKS <= allowed, f"{path} imports {roots & FRAMEWORKS}"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running ``code``."""
    script = f"{code}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    return set(python("-W", "error", "-c", script).split())


HEAVY = FRAMEWORKS | set("matplotlib rich click ml_dtypes platformdirs array_api_compat".split())


def test_import_loads_no_framework_and_not_even_numpy():
    assert loaded_by("import kldiv") & {*HEAVY, "numpy"} == set()


def test_streaming_loads_no_command_and_no_cluster():
    assert loaded_by("import kldiv.streaming") & {"click", "rich", "distributed"} == set()


def test_an_adapter_loads_no_compiler():
    code = "import kldiv; kldiv.backends.get('numpy'); import kldiv.kernels.cpu"
    assert not {"llvmlite", "numba"} & loaded_by(code)


def test_a_call_on_numpy_loads_no_framework():
    code = "import numpy, kldiv; kldiv.kl_div(numpy.zeros(2), numpy.ones(2))"
    assert loaded_by(code) & HEAVY <= {"platformdirs"}


@pytest.mark.parametrize("framework", ["dask", "torch", "jax"])
def test_the_import_test_can_fail(framework):
    pytest.importorskip(framework)
    assert framework in loaded_by(f"import kldiv, {framework}")


GROWING = set("Density Holes Least Oddity Pair Part Seen Spread Tally".split())
"""Dataclasses whose objects change, or hold arrays; all others are results, or keys of caches."""


def is_frozen(decorator: ast.expr) -> bool | None:
    """Whether a decorator makes a dataclass that does not change; None of any other."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if ast.unparse(called) not in {"dataclass", "dataclasses.dataclass"}:
        return None
    given = decorator.keywords if isinstance(decorator, ast.Call) else []
    return any(word.arg == "frozen" and ast.unparse(word.value) == "True" for word in given)


def test_records_do_not_change():
    changing = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and False in map(is_frozen, node.decorator_list)
    }
    assert changing == GROWING


def test_public_names_are_sorted_and_real():
    assert kldiv.__all__ == sorted(kldiv.__all__)
    assert set(kldiv._HOMES) == set(kldiv.__all__)
    for name in kldiv.__all__:
        value = getattr(kldiv, name)
        assert value.__name__ == name
        assert value.__module__.startswith(f"kldiv.{kldiv._HOMES[name]}")
    stubs = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("kldiv")
        for alias in node.names
    }
    above = {"cli", "streaming"}  # which import the package: type checkers would see a circle
    assert stubs == {*kldiv.__all__, *kldiv._MODULES} - above, "what type checkers see differs"
    assert {*kldiv.__all__, "errors", "backends"} <= set(dir(kldiv))
    with pytest.raises(AttributeError, match="has no attribute 'kl_divv'"):
        _ = kldiv.kl_divv


def test_public_names_have_examples():
    for name in kldiv.__all__:
        documentation = getattr(kldiv, name).__doc__
        assert ">>>" in documentation, f"{name} has no example"


def test_the_adapters_have_few_methods_and_files_no_circles():
    assert len(walk.methods_of_backend()) <= 20
    assert walk.circles() == []
