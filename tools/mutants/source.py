"""Which mutants a source file has, without those that no test could tell from it."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection, Iterator, Mapping

    from cosmic_ray.operators.operator import Operator

    Place = tuple[int, int]
    """A line, from 1 on, and a column of characters, from 0 on."""

_KEEPS_OR_TYPES = {"cache", "lru_cache", "override", "overload", "final", "runtime_checkable"}
"""Decorators without which a function returns the same."""

_POINTLESS = {
    "frozen": "a rule for all records, which a test holds",
    "slots": "memory",
    "stacklevel": "where a warning points",
    "strict": "a zip's check of lengths that are equal",
}
"""Arguments that no result depends on, and what they are for."""

# `is` and `==` agree on None, booleans, types and interned words, of which there are many, and
# rarely on anything else that is compared in this way.
_SAME = {("Eq", "Is"), ("Is", "Eq"), ("NotEq", "IsNot"), ("IsNot", "NotEq")}


@dataclass(frozen=True, order=True)
class Mutant:
    """A change of one place of a file."""

    path: str
    operator: str
    occurrence: int
    place: Place

    @property
    def name(self) -> str:
        """The key of its results."""
        return f"{self.path}:{self.place[0]}:{self.place[1]} {self.operator}#{self.occurrence}"

    def applied(self, source: str) -> str | None:
        """Return the source with the change; None where that is no Python."""
        operator = cosmic_ray.plugins.get_operator(self.operator)()
        changed: str = mutate_code(source, operator, self.occurrence)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(changed, self.path, "exec")
        except (SyntaxError, ValueError):
            return None
        return changed


@cache
def _operators() -> dict[str, Operator]:
    """Return the operators that need no settings, by name."""
    classes = {name: cosmic_ray.plugins.get_operator(name) for name in _operator_names()}
    return {name: cls() for name, cls in classes.items() if not cls.arguments()}


def _operator_names() -> list[str]:
    return sorted(
        name
        for name in cosmic_ray.plugins.operator_names()
        if tuple(name.rpartition("Operator_")[2].split("_")) not in _SAME
    )


def mutants(
    path: str, source: str, equal: Collection[str], left_out: Counter[str]
) -> list[list[Mutant]]:
    """Return the mutants of a file, those of one place together.

    ``equal`` names constants that no result depends on; ``left_out`` counts the places that are
    passed over, by reason.
    """
    passed = list(_equivalent(ast.parse(source), source.splitlines(), equal))
    tree = get_ast(source)
    found: dict[Place, list[Mutant]] = {}
    reasons: dict[Place, str] = {}
    nodes = [node for node in ast_nodes(tree) if not _is_dull(node)]
    for name, operator in _operators().items():
        occurrence = -1
        for node in nodes:
            for place, _ in operator.mutation_positions(node):
                occurrence += 1
                # The bare / and * of a signature are operators to cosmic-ray.
                parent = node.parent.type if node.parent else ""
                if parent in {"parameters", "lambdef"}:
                    reasons[place] = "a signature's / or *"
                    continue
                why = next((why for start, end, why in passed if start <= place < end), None)
                if why is None:
                    found.setdefault(place, []).append(Mutant(path, name, occurrence, place))
                else:
                    reasons[place] = why
    left_out.update(reasons.values())
    return [found[place] for place in sorted(found)]


def _is_dull(node: Any) -> bool:
    """Return whether no operator changes a node: most are names and punctuation."""
    return node.type in {"name", "newline", "string", "endmarker"} or (
        node.type == "operator" and node.value in "()[]{},.:=;"
    )


def sample(
    files: Mapping[str, list[list[Mutant]]], sources: Mapping[str, str], number: int, seed: int
) -> list[tuple[Mutant, str]]:
    """Draw places, each as likely as another whatever its file, and a mutant of each with its text.

    Mutants themselves are not drawn: a plus has eleven, a condition one.
    """
    random = Random(seed)  # noqa: S311 - a sample, no secret
    places = [place for path in sorted(files) for place in files[path]]
    random.shuffle(places)
    chosen: list[tuple[Mutant, str]] = []
    for place in places:
        if len(chosen) == number:
            break
        for mutant in random.sample(place, len(place)):
            changed = mutant.applied(sources[mutant.path])
            if changed is not None:
                chosen.append((mutant, changed))
                break
    return chosen


# ---- what cannot be told apart -------------------------------------------------------------------


def _equivalent(
    tree: ast.AST, lines: list[str], equal: Collection[str]
) -> Iterator[tuple[Place, Place, str]]:
    """Yield the stretches of a file in which a change changes no result, and why."""
    for node in ast.walk(tree):
        for part, why in _parts(node, equal):
            yield _place(part.lineno, part.col_offset, lines), _end(part, lines), why
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            named = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(named, ast.Name) and named.id in _KEEPS_OR_TYPES:
                line, column = _place(decorator.lineno, decorator.col_offset, lines)
                yield (line, column - 1), _end(decorator, lines), "a decorator that only keeps"


def _parts(node: ast.AST, equal: Collection[str]) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    match node:
        case ast.arg(annotation=ast.expr() as type_) | ast.FunctionDef(returns=ast.expr() as type_):
            yield type_, "a type"
        case ast.AnnAssign(target=target, annotation=type_, value=value):
            yield type_, "a type"
            if value is not None and ast.unparse(type_).endswith("TypeAlias"):
                yield value, "a type"
            if value is not None and isinstance(target, ast.Name) and target.id in equal:
                yield value, "a constant that no result depends on"
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in equal:
            yield value, "a constant that no result depends on"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node, "imports for types"
        case ast.JoinedStr():
            yield node, "text"
        case ast.BinOp(left=left, right=right) if _is_text(left) or _is_text(right):
            yield node, "text"
        case ast.keyword(arg=str() as name, value=value) if name in _POINTLESS:
            yield value, _POINTLESS[name]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _place(line: int, offset: int, lines: list[str]) -> Place:
    # Python counts the bytes of UTF-8, cosmic-ray's parser characters.
    return line, len(lines[line - 1].encode()[:offset].decode())


def _end(node: ast.expr | ast.stmt, lines: list[str]) -> Place:
    if node.end_lineno is None or node.end_col_offset is None:
        raise ValueError(ast.dump(node))
    return _place(node.end_lineno, node.end_col_offset, lines)
