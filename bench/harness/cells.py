"""The cells: operation × pass × who × library × kernel × mode × dtype × shape × device.

Cells that differ only in who computes form a group; a group is measured in the same rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from .libraries import LIBRARIES, supports
from .operations import ITEMSIZE, OPERATIONS
from .peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .operations import Operation, Pass, Shape

OWN: Final = "kldiv"
FLOOR: Final = "memory"
"""Who reads and writes the bytes that must move, and does nothing else."""


@dataclass(frozen=True, order=True)
class Group:
    """The cells that are measured side by side."""

    operation: str
    part: Pass
    dtype: str
    shape: Shape
    device: str

    @property
    def key(self) -> str:
        """Its name in a results file."""
        rows, classes = self.shape
        return f"{self.operation} {self.part} {self.dtype} {rows}x{classes} {self.device}"


@dataclass(frozen=True)
class Cell:
    """One time to be measured."""

    group: Group
    who: str
    """`OWN`, `FLOOR`, or a peer's name."""
    library: str
    kernel: str | None = None
    mode: str = "eager"

    @property
    def key(self) -> str:
        """Its name in a results file."""
        return f"{self.group.key} | {self.label}"

    @property
    def label(self) -> str:
        """Who it is, in words: unique in its group."""
        return label(self.who, self.library, self.kernel, self.mode)

    def record(self) -> dict[str, Any]:
        """Return the fields that identify it, as the results file has them."""
        group = asdict(self.group)
        return {
            "key": self.key,
            "operation": group["operation"],
            "pass": group["part"],
            "who": self.who,
            "library": self.library,
            "kernel": self.kernel,
            "mode": self.mode,
            "dtype": group["dtype"],
            "shape": list(group["shape"]),
            "device": group["device"],
        }


def label(who: str, library: str, kernel: str | None, mode: str) -> str:
    """Return who computes, in words."""
    if who != OWN:
        return who
    how = {"eager": "", "compile": "compiled", "jit": "jit"}[mode]
    return " ".join(part for part in (OWN, library, kernel, how) if part)


@dataclass(frozen=True)
class Request:
    """Which cells are wanted; None stands for all."""

    operations: Sequence[str] | None = None
    libraries: Sequence[str] | None = None
    kernels: Sequence[str] | None = None
    peers: Sequence[str] | None = None
    dtypes: Sequence[str] = ("float32", "float64")
    shapes: Sequence[Shape] | None = None
    passes: Sequence[str] = ("value", "gradient")
    device: str = "cpu"
    quick: bool = False


@dataclass
class Plan:
    """The cells to measure, and those that cannot be."""

    groups: dict[Group, list[Cell]] = field(default_factory=dict)
    missing: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """By library or peer: why it is not there, and the line that installs it."""

    @property
    def cells(self) -> list[Cell]:
        """All cells."""
        return [cell for cells in self.groups.values() for cell in cells]


def plan(request: Request) -> Plan:
    """Return the cells that there are to measure here."""
    found = Plan()
    libraries, peers = _here(request, found)
    for operation in _operations(request):
        shapes = request.shapes or _shapes(operation, quick=request.quick)
        for dtype, shape, part in product(request.dtypes, shapes, operation.passes):
            if part not in request.passes:
                continue
            group = Group(operation.name, part, dtype, tuple(shape), request.device)
            cells = [*_own(request, group, libraries), *_peers(group, peers)]
            if cells:
                found.groups[group] = [Cell(group, FLOOR, FLOOR), *cells]
    return found


def _operations(request: Request) -> list[Operation]:
    if request.operations is not None:
        return [OPERATIONS[name] for name in request.operations]
    return [each for each in OPERATIONS.values() if not request.quick or each.quick is not None]


def _shapes(operation: Operation, *, quick: bool) -> Sequence[Shape]:
    return operation.shapes if not quick or operation.quick is None else (operation.quick,)


def _here(request: Request, found: Plan) -> tuple[list[str], list[str]]:
    """Return the libraries and peers that can be measured; note down the others."""
    libraries, peers = [], []
    for name, library in LIBRARIES.items():
        if request.libraries is not None and name not in request.libraries:
            continue
        why = library.problem(request.device)
        if why is None:
            libraries.append(name)
        elif request.device in library.devices:
            found.missing[name] = {"reason": why, "install": library.install()}
    for name, peer in PEERS.items():
        wanted = request.peers is None or name in request.peers
        if not wanted or request.device not in peer.devices:
            continue
        missing = peer.missing()
        why = missing or LIBRARIES[peer.library].problem(request.device)
        if why is None:
            peers.append(name)
        else:
            found.missing[name] = {"reason": why, "install": peer.install if missing else None}
    return libraries, peers


def _own(request: Request, group: Group, libraries: Sequence[str]) -> Iterator[Cell]:
    for name in libraries:
        library = LIBRARIES[name]
        if supports(library, group.dtype) is not None:
            continue
        # A quick run leaves out cells that take long to compile, or to start.
        modes = library.modes[:1] if request.quick else library.modes
        if request.quick and name == "dask" and request.libraries is None:
            continue
        for kernel, mode in product(library.kernels(), modes):
            if request.kernels is None or kernel in request.kernels:
                yield Cell(group, OWN, name, kernel, mode)


def _peers(group: Group, peers: Sequence[str]) -> Iterator[Cell]:
    for name in peers:
        peer = PEERS[name]
        dtypes = peer.dtypes or LIBRARIES[peer.library].dtypes
        if group.dtype in dtypes and peer.knows(group.operation, group.part):
            yield Cell(group, name, peer.library, None, peer.mode)


def known_dtypes() -> tuple[str, ...]:
    """Return the dtypes that can be asked for."""
    return tuple(ITEMSIZE)
