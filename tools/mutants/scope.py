"""Which files are mutated, which tests judge each, and which constants no result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.mutants.judge import Stage

_ON_NUMPY: Final = ("-k", "numpy and not readonly and not memory")
_ON_OTHERS: Final = (
    "-k",
    "(strictest or (torch and not float64 and not compile) or dask) and not memory",
)
# What names no library in its parameters.
_ON_NONE: Final = ("-k", "not numpy and not strict and not torch and not jax and not dask")

_SEMANTICS: Final = "tests/losses/test_semantics.py"
_GRADIENTS: Final = "tests/losses/test_gradients.py"
_ROW_LOSSES: Final = "tests/losses/test_logits.py"
_ROW_FORMULAS: Final = "tests/formulas/test_logits.py"
_MEASURES: Final = "tests/losses/test_measures.py"
_ADAPTERS: Final = ("tests/backends/test_choice.py", "tests/backends/test_adapters.py")

# Derivatives of every loss, and what else PyTorch does with one.
_DIFFERENTIATED: Final = ("tests/losses/test_conformance.py", "-k", "differentiates and not jax")

_ROWS: Final = (
    (_ROW_LOSSES, *_ON_NUMPY),
    (_ROW_FORMULAS, *_ON_NUMPY),
    ("tests/losses/test_states.py", *_ON_NUMPY),
    (_ROW_LOSSES, *_ON_OTHERS),
    (_ROW_FORMULAS, *_ON_NONE),
    ("tests/losses/test_f_divergences.py", "-k", "not jax and not dask and not compile"),
    _DIFFERENTIATED,
)
_PLANS: Final = (("tests/formulas/test_shards.py",),)
_RANKS: Final = (("tests/formulas/test_spread.py",), ("tests/backends/test_tensor_parallel.py",))
_SHARDED: Final = (
    *_PLANS,
    (_ROW_LOSSES, "-k", "dask"),
    ("tests/backends/test_dask.py",),
    ("tests/losses/test_states.py", "-k", "torch or dask"),
    # JAX compiles each case, so few of them.
    (_ROW_LOSSES, "-k", "jax-x64 and (targets or reductions)"),
)
_PAIRS: Final = (
    (_SEMANTICS, *_ON_NUMPY),
    (_SEMANTICS, "-k", "torch or jax-x64 or strictest or dask"),
    (_GRADIENTS, "-k", "not compile and not inductor"),
)
_SINGLE: Final = (
    (_MEASURES, *_ON_NUMPY),
    ("tests/losses/test_family_of_measures.py", "-k", "not compile and not jax"),
    (_MEASURES, "-k", "not compile"),
    (*_DIFFERENTIATED[:2], "torch_differentiates and measure"),
)
_SAMPLES: Final = (
    ("tests/test_estimators.py", "tests/test_estimator_options.py"),
    ("tests/test_fitting.py", "tests/test_fitting_judgement.py"),
)
_DISTILLED: Final = ("tests/losses/test_distillation.py", "-k", "not compile")
_RENYI: Final = ("tests/losses/test_renyi_with_logits.py", "-k", "not compile")
_SPARSE: Final = ("tests/losses/test_sparse.py", "-k", "not compile")
_ARGUMENTS: Final = ("tests/losses/test_wrong_arguments.py",)
_LARGE: Final = "bomb or honest or without_memory or terabyte"
_COMPARED: Final = tuple(f"tests/cli/test_{name}.py" for name in ("tables", "compare", "pairs"))
# A cluster's processes cannot be started by the one that runs tests here.
_STREAMED: Final = ("tests/streaming", "-k", "not cluster")
_FILES: Final = (
    ("tests/readers", "-k", f"not ({_LARGE})"),
    _COMPARED,
    _STREAMED,
    ("tests/readers", "-k", _LARGE),
)
_CHOICE: Final = (("tests/test_config.py",), _ADAPTERS)

_TESTS: Final[dict[str, tuple[Stage, ...]]] = {
    "kldiv/_arguments.py": (_ARGUMENTS, (_SEMANTICS, *_ON_NUMPY)),
    "kldiv/_call.py": (
        _ARGUMENTS,
        *_PAIRS[:1],
        (_ROW_LOSSES, *_ON_NUMPY),
        _DISTILLED,
        *_SINGLE,
        *_PAIRS[1:],
        _ADAPTERS,
    ),
    "kldiv/_rows.py": (_ARGUMENTS, (_ROW_LOSSES, *_ON_NUMPY)),
    "kldiv/backends/generic.py": ((_SEMANTICS, "-k", "strict"), *_SINGLE, _ADAPTERS),
    "kldiv/backends/numpy_.py": (
        (_SEMANTICS, "-k", "numpy"),
        *_CHOICE,
        ("tests/losses/test_extreme_rows.py", "-k", "strided"),
    ),
    "kldiv/backends/overlay.py": ((_SEMANTICS, "-k", "numpy or strict"), *_CHOICE),
    "kldiv/backends/chunks.py": (("tests/losses/test_linear.py",), _DIFFERENTIATED),
    "kldiv/backends/exchange.py": _CHOICE,
    "kldiv/backends/registry.py": _CHOICE,
    "kldiv/backends/routing.py": (_CHOICE[0], *_PAIRS[:1], *_CHOICE[1:]),
    "kldiv/formulas/blocks.py": (("tests/formulas/test_blocks.py",), *_ROWS, *_SHARDED),
    "kldiv/formulas/circle.py": (("tests/distributions",),),
    "kldiv/formulas/cross_entropy.py": (
        ("tests/losses/test_labels.py", "-k", "teacher"),
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/divergences.py": (
        *_ROWS[::-1],
        _SPARSE,
        *_SHARDED,
    ),
    "kldiv/formulas/estimators.py": _SAMPLES,
    "kldiv/formulas/interpolation.py": (
        _DISTILLED,
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/matched.py": (
        ("tests/losses/test_matched.py", "-k", "not compile"),
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/spread.py": _RANKS,
    "kldiv/formulas/labels.py": (
        ("tests/losses/test_labels.py", "-k", "not compile"),
        ("tests/kernels/test_cpu_labels.py", "-k", "not compile"),
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/layers.py": (("tests/losses/test_linear.py",), _DIFFERENTIATED),
    "kldiv/formulas/linear.py": (("tests/losses/test_linear.py",), _DIFFERENTIATED),
    "kldiv/formulas/logits.py": (*_ROWS, *_SHARDED),
    "kldiv/formulas/measure_shards.py": (*_PLANS, *_SINGLE, ("tests/backends/test_dask.py",)),
    "kldiv/formulas/measures.py": _SINGLE,
    "kldiv/formulas/renyi_measures.py": _SINGLE,
    "kldiv/formulas/row_measures.py": _SINGLE,
    "kldiv/formulas/moments.py": (("tests/test_metrics.py",),),
    "kldiv/formulas/numbers.py": (
        *_ROWS[:1],
        ("tests/kernels/test_conformance.py", "-k", "(cpu or triton) and (exact or series)"),
        *_ROWS[1:],
    ),
    "kldiv/formulas/packing.py": _SHARDED,
    "kldiv/formulas/operation.py": (*_PAIRS, *_ROWS),
    "kldiv/formulas/pairs.py": (("tests/losses/test_pairwise.py", "-k", "not compile"),),
    "kldiv/formulas/plans.py": (*_SHARDED, *_SINGLE),
    "kldiv/formulas/pointwise.py": (*_PAIRS, ("tests/losses/test_properties.py",)),
    "kldiv/formulas/reductions.py": (("tests/formulas/test_reductions.py",), *_PAIRS, *_ROWS[:1]),
    "kldiv/formulas/binet.py": (("tests/distributions",),),
    "kldiv/formulas/policy.py": (
        ("tests/losses/test_labels.py", "-k", "reference"),
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/powers.py": (
        ("tests/losses/test_f_divergences.py", "-k", "not compile"),
        _RENYI,
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/ranks.py": _RANKS,
    "kldiv/formulas/remainders.py": (("tests/distributions",),),
    "kldiv/formulas/row_options.py": _ROWS,
    "kldiv/formulas/rows.py": (*_ROWS, *_SHARDED),
    "kldiv/formulas/samples.py": _SAMPLES,
    "kldiv/formulas/shards.py": (
        *_RANKS[:1],
        *_SHARDED,
        *_ROWS,
        ("tests/backends/test_tensor_parallel.py", "-k", "sparse_teachers"),
    ),
    "kldiv/formulas/sparse.py": (
        _SPARSE,
        _DIFFERENTIATED,
    ),
    "kldiv/formulas/special.py": (*_ROWS[1::-1], *_SINGLE, _RENYI, ("tests/distributions",)),
    "kldiv/formulas/state.py": (*_ROWS, *_SHARDED),
    "kldiv/formulas/terms.py": (("tests/losses/test_linear.py",), _DIFFERENTIATED),
    "kldiv/formulas/weighting.py": (
        ("tests/losses/test_weights.py", "-k", "not compile"),
        _DIFFERENTIATED,
    ),
    "kldiv/readers/*.py": _FILES,
    "kldiv/streaming/*.py": (_STREAMED, _COMPARED),
}
"""Tests that cover a file, the quickest that cover most first."""

_NO_RESULT: Final[dict[str, dict[str, str]]] = {
    "kldiv/formulas/blocks.py": {
        "BLOCK_BYTES": "rows are cut for the cache; any cut gives the same rows",
        "BLOCK_CLASSES": "likewise for classes",
    },
    "kldiv/formulas/circle.py": {"_LARGE": "both ways are right about it"},
    "kldiv/formulas/numbers.py": {"DEEPEST": "any finite number serves"},
    "kldiv/readers/cells.py": {
        "_SAMPLE_CELLS": "rows that are looked at",
        "_SAMPLE_ROWS": "likewise",
    },
    "kldiv/readers/numpy_files.py": {"_NPY_HEADER": "a limit far from any that is needed"},
    "kldiv/readers/sources.py": {
        "FLOOR": "a limit, round",
        "RATIO": "a limit, round",
        "SHOWN": "names in a message",
        "STORED": "when reading is cheaper than staying on disk",
        "_CHUNK": "bytes of one read",
        "_MAPPED": "when mapping is cheaper than reading",
    },
    "kldiv/readers/stored.py": {"_CHUNK": "bytes of one read"},
    "kldiv/readers/tensor_files.py": {"_JSON_HEADER": "a limit far from any that is needed"},
    "kldiv/readers/zarr_store.py": {
        "_AT_ONCE": "how much memory decompressing takes",
        "_MOST_METADATA": "a limit far from any that is needed",
    },
}
"""Constants whose neighbours are as right: speed, memory and round limits."""


@dataclass(frozen=True)
class Scope:
    """A file that is mutated."""

    path: str
    stages: tuple[Stage, ...]
    equal: Mapping[str, str]
    """Constants that no result depends on, and why."""


def scopes(root: Path, only: str = "*") -> list[Scope]:
    """Return the files that are mutated, those whose path matches a pattern."""
    found = []
    for pattern, stages in _TESTS.items():
        for file in sorted(root.glob(pattern)):
            path = file.relative_to(root)
            if path.match(only):
                name = path.as_posix()
                found.append(Scope(name, stages, _NO_RESULT.get(name, {})))
    return found
