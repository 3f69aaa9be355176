"""Distil a language model of letters from a sparse teacher on disk, with PyTorch and with JAX.

The text is Python's own documentation, which comes with Python.  The teacher, 384 hidden units,
reads the last 16 characters and learns to guess the next one from 400,000 of them.  Its eight
likeliest guesses at each place of a short text, with the exact rest of the mass, go into a file, as
serving engines would leave them: 68 bytes a character.  Students have 96 hidden units and 30,000
characters: one learns from these characters alone, one from the file, one from the teacher's
logits whole.  All take the same steps from the same weights; no logits of the second one exist
outside a chunk, since its loss takes hidden states.

    python examples/distill_text.py --out distill_text.png

On text that nobody has seen the student of the file needs fewer bits a character than the one of
the characters alone, and a little more than that of the whole teacher; both libraries draw the same
curves.

Takes about a minute on two cores.  Needs PyTorch or JAX, Matplotlib and safetensors.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv
from kldiv.streaming import TeacherWriter, open_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Numbers = np.ndarray[Any, Any]
    Curves = dict[str, list[tuple[int, float]]]

CONTEXT, EMBEDDING, K = 16, 16, 8
TEACHER_UNITS, STUDENT_UNITS = 384, 96
TEACHER_TEXT, STUDENT_TEXT, TEST_TEXT = 400_000, 30_000, 6_000
BATCH, RATE = 256, 4e-3
RINGS: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5, "fillstyle": "none"}
"""The style of JAX's curves, which lie on PyTorch's."""
CHARACTERS, SPARSE, WHOLE = "the characters alone", "8 guesses of a file", "the whole teacher"


def text() -> tuple[Numbers, int]:
    """Return Python's documentation as numbers of characters, and how many there are."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte

    whole = "\n".join(topics.values())
    letters = sorted(set(whole))
    number = {letter: place for place, letter in enumerate(letters)}
    return np.array([number[letter] for letter in whole]), len(letters)


def windows(characters: Numbers) -> tuple[Numbers, Numbers]:
    """Return the characters before each place, and the one there."""
    before = np.lib.stride_tricks.sliding_window_view(characters[:-1], CONTEXT)
    return before, characters[CONTEXT:]


def weights(letters: int, units: int, seed: int) -> list[Numbers]:
    """Return the first weights: of characters, of a hidden layer and its bias, of the last one."""
    random = np.random.default_rng(seed)
    shapes = (letters, EMBEDDING), (CONTEXT * EMBEDDING, units), (units,), (letters, units)
    return [
        (random.normal(size=shape) / math.sqrt(max(shape[0], 16))).astype(np.float32)
        for shape in shapes
    ]


def batches(size: int, steps: int, seed: int) -> Iterator[Numbers]:
    """Return the places of each step."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        yield random.integers(size, size=BATCH)


# ---- the losses, on any library ------------------------------------------------------------------


def head(relu: Callable[[Any], Any], model: Sequence[Any], before: Any) -> kldiv.Head:
    """Return hidden states and last layer: logits are made of them a chunk at a time."""
    embedding, first, bias, last = model
    found = embedding[before].reshape(len(before), CONTEXT * EMBEDDING)
    return kldiv.Head(relu(found @ first + bias), last)


def of_characters(student: kldiv.Head, after: Any, _: Any) -> Any:
    """Return the loss of the characters."""
    return kldiv.cross_entropy_with_logits(student.hidden @ student.weight.T, after)


def of_guesses(student: kldiv.Head, _: Any, guesses: tuple[Any, ...]) -> Any:
    """Return the loss of a sparse teacher."""
    teacher = kldiv.SparseTeacher(*guesses)
    return kldiv.linear_distillation_loss(student, teacher, beta=0.0, reduction="mean")


def of_logits(student: kldiv.Head, _: Any, logits: tuple[Any, ...]) -> Any:
    """Return the loss of a teacher whose logits are there."""
    teacher = {"target_log_probs": logits[0]}
    return kldiv.linear_distillation_loss(student, **teacher, beta=0.0, reduction="mean")


LOSSES = {CHARACTERS: of_characters, SPARSE: of_guesses, WHOLE: of_logits}


# ---- the same steps by each library --------------------------------------------------------------


class Torch:
    """Training with PyTorch."""

    def __init__(self, model: Sequence[Numbers], loss: Callable[..., Any]) -> None:
        import torch  # noqa: PLC0415

        self.torch, self.loss = torch, loss
        self.model = [torch.tensor(array, requires_grad=True) for array in model]
        self.adam = torch.optim.Adam(self.model, RATE)

    def step(self, before: Numbers, after: Numbers, extra: Sequence[Numbers]) -> None:
        """Take a step."""
        torch = self.torch
        student = head(torch.relu, self.model, torch.tensor(before))
        others = tuple(map(torch.tensor, extra))
        self.adam.zero_grad()
        self.loss(student, torch.tensor(after), others).backward()
        self.adam.step()

    def weights(self) -> list[Numbers]:
        """Return the weights."""
        return [array.detach().numpy() for array in self.model]


class Jax:
    """Training with JAX: a step is one program."""

    def __init__(self, model: Sequence[Numbers], loss: Callable[..., Any]) -> None:
        import jax  # noqa: PLC0415

        def value(model: list[Any], before: Any, after: Any, extra: tuple[Any, ...]) -> Any:
            return loss(head(jax.nn.relu, model, before), after, extra)

        @jax.jit
        def step(state: Any, *batch: Any) -> Any:
            model, first, second, count = state
            slopes = jax.grad(value)(model, *batch)
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slopes)
            scale = RATE * jax.numpy.sqrt(1 - 0.999**count) / (1 - 0.9**count)

            def moved(w: Any, m: Any, v: Any) -> Any:
                return w - scale * m / (jax.numpy.sqrt(v) + 1e-8)

            return jax.tree.map(moved, model, first, second), first, second, count + 1

        own = [jax.numpy.asarray(array) for array in model]
        nothing = [jax.numpy.zeros_like(array) for array in own]
        self.state, self._step = (own, nothing, nothing, 1.0), step

    def step(self, before: Numbers, after: Numbers, extra: Sequence[Numbers]) -> None:
        """Take a step."""
        self.state = self._step(self.state, before, after, tuple(extra))

    def weights(self) -> list[Numbers]:
        """Return the weights."""
        return [np.asarray(array) for array in self.state[0]]


LIBRARIES = {"torch": Torch, "jax": Jax}


def logits_of(model: Sequence[Numbers], before: Numbers) -> Numbers:
    """Return a model's logits by NumPy."""
    made = head(lambda x: np.maximum(x, 0), model, before)
    found: Numbers = made.hidden @ made.weight.T
    return found


def bits(model: Sequence[Numbers], before: Numbers, after: Numbers) -> float:
    """Return how many bits a character takes."""
    return float(kldiv.cross_entropy_with_logits(logits_of(model, before), after)) / math.log(2)


def learn(
    made: Torch | Jax,
    data: tuple[Numbers, Numbers],
    extra: Sequence[Numbers],
    steps: int,
    test: tuple[Numbers, Numbers],
) -> Iterator[tuple[int, float]]:
    """Take all steps, and yield now and then how many bits a character of the test takes."""
    yield 0, bits(made.weights(), *test)
    for number, places in enumerate(batches(len(data[0]), steps, seed=1), 1):
        made.step(data[0][places], data[1][places], [array[places] for array in extra])
        if number % max(steps // 10, 1) == 0 or number == steps:
            yield number, bits(made.weights(), *test)


def write(path: Path, model: Sequence[Numbers], before: Numbers) -> int:
    """Write a sparse teacher, a block at a time; return the bytes of the file."""
    letters = len(model[0])
    with TeacherWriter(path, rows=len(before), k=K, vocabulary=letters) as writer:
        for start in range(0, len(before), 4096):
            logits = logits_of(model, before[start : start + 4096])
            writer.write(kldiv.topk_log_probs(logits, K))
    return path.stat().st_size


def draw(curves: Curves, teacher: float, out: Path) -> None:
    """Draw bits a character against steps."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    colours = dict(zip(LOSSES, ("#b5483a", "#2f6f9f", "#6b6b6b"), strict=True))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        library, learnt = name.split(": ")
        style = {} if library == "torch" else RINGS
        axes.plot(*zip(*points, strict=True), color=colours[learnt], **style)
    for learnt, colour in colours.items():
        axes.plot([], [], color=colour, label=f"student: {learnt}")
    axes.axhline(teacher, color="#888888", linewidth=0.8, linestyle=":", label="the teacher")
    used = {name.partition(":")[0] for name in curves}
    if "torch" in used:
        axes.plot([], [], color="black", label="PyTorch")
    if "jax" in used:
        axes.plot([], [], color="black", label="JAX", **RINGS)
    axes.set_xlabel("step")
    axes.set_ylabel("bits a character, on text nobody has seen")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def usable(wanted: Sequence[str]) -> list[str]:
    """Return the libraries that are there, and leave if none is, or anything else is missing."""
    if missing := [name for name in ("matplotlib", "safetensors") if find_spec(name) is None]:
        sys.exit(f"this example also needs {', '.join(missing)}: pip install {' '.join(missing)}")
    status = kldiv.available_backends(unusable=True)
    found = [name for name in wanted if status[name].usable]
    if not found:
        sys.exit("; ".join(f"no {name}: {status[name].install}" for name in wanted))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, report and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=[*LIBRARIES, "both"], default="both")
    parser.add_argument("--steps", type=int, default=300, help="of the teacher; students take half")
    parser.add_argument("--out", type=Path, default=Path("distill_text.png"))
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, got {options.steps}")
    libraries = usable([*LIBRARIES] if options.backend == "both" else [options.backend])
    started = time.perf_counter()
    characters, letters = text()
    ends = np.cumsum([TEACHER_TEXT, STUDENT_TEXT, TEST_TEXT])
    for_teacher, for_student, test = map(windows, np.split(characters[: ends[-1]], ends[:-1]))
    train = LIBRARIES[libraries[0]]
    made = train(weights(letters, TEACHER_UNITS, 0), of_characters)
    *_, (_, of_teacher) = learn(made, for_teacher, (), options.steps, test)
    model = made.weights()
    print(f"teacher, {options.steps} steps: {of_teacher:.3f} bits a character")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "teacher.safetensors")
        size = write(path, model, for_student[0])
        print(f"its {K} likeliest guesses of {len(for_student[0]):,} characters: {size:,} bytes")
        guesses = [np.array(array) for array in open_teacher(path)[:][:3]]
    given = {CHARACTERS: (), SPARSE: guesses, WHOLE: (logits_of(model, for_student[0]),)}
    curves: Curves = {}
    for library in libraries:
        for name, loss in LOSSES.items():
            made = LIBRARIES[library](weights(letters, STUDENT_UNITS, 2), loss)
            steps = learn(made, for_student, given[name], options.steps // 2, test)
            curves[f"{library}: {name}"] = points = list(steps)
            print(f"student, {library}, {name}: {points[-1][1]:.3f} bits a character")
    draw(curves, of_teacher, options.out)
    print(f"drawn into {options.out}, after {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
