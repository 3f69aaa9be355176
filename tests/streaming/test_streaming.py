"""``kldiv.streaming``: the numbers of arrays in memory, from any source and in any parts."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from streaming.inputs import data

import kldiv
from kldiv import streaming
from kldiv.errors import (
    BackendError,
    DTypeError,
    InputError,
    LibraryError,
    OptionError,
    ShapeError,
)
from kldiv.readers import Table, open_table
from kldiv.streaming import alignment, blocks, rows

SPLIT, WHOLE = 128 * 8 * 7, 128 * 8 * 40
"""Memory in which rows of 30 classes are cut, and in which they are not."""

pytestmark = pytest.mark.usefixtures("small")


def in_memory(p, q, form):
    """Return the three divergences of each row by kldiv's functions of arrays."""
    if form == "logits":
        return (
            kldiv.kl_div_with_logits(q, p, reduction="none"),
            kldiv.kl_div_with_logits(p, q, reduction="none"),
            kldiv.js_div_with_logits(q, p, reduction="none"),
        )
    if form == "log-probs":
        p, q = np.exp(p), np.exp(q)
    options = {"normalize": form == "counts"}
    return (
        kldiv.kl_divergence(p, q, **options),
        kldiv.kl_divergence(q, p, **options),
        kldiv.js_divergence(p, q, **options),
    )


def measures(found):
    return found.kl_pq, found.kl_qp, found.js


def same(one, other):
    """Whether two results are the same to the last bit, but for the names of their files."""
    for each in fields(one):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if isinstance(a, streaming.Summary):
            np.testing.assert_array_equal(a.values, b.values)
            a, b = ((s.value, s.mean, s.median, s.max, s.infinite) for s in (a, b))
            np.testing.assert_array_equal(a, b)
        elif isinstance(a, streaming.Side):
            assert replace(a, path=None) == replace(b, path=None)
        else:
            assert a == b, each.name
    return True


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [SPLIT, WHOLE, None])
@pytest.mark.parametrize("form", ["logits", "log-probs", "probs", "counts"])
def test_the_divergences_are_those_of_arrays_in_memory(form, memory):
    p, q = data(form)
    found = streaming.compare(p, q, form=form, memory=memory, reduction="none")
    for summary, expected in zip(measures(found), in_memory(p, q, form), strict=True):
        np.testing.assert_allclose(summary.values, expected, rtol=1e-13)
        np.testing.assert_allclose(
            [summary.value, summary.mean, summary.median, summary.max],
            [expected.mean(), expected.mean(), np.median(expected), expected.max()],
            rtol=1e-13,
        )
        assert summary.infinite == np.isinf(expected).sum()
    assert found.mean == found.kl_pq.mean
    assert (found.shape, found.count, found.classes, found.axis) == ((8,), 8, 30, 1)
    assert found.p.form == found.q.form == form
    assert found.p.normalized == (form in {"counts", "logits"})
    alike = streaming.compare(p, p, form=form, memory=memory)
    assert [each.value for each in measures(alike)] == [0.0, 0.0, 0.0]
    order = np.argsort(-in_memory(p, q, form)[0], kind="stable")
    if form == "counts":
        assert [row.index for row in found.worst] == order.tolist()
        assert found.worst[0].kl_pq == found.kl_pq.max
    else:
        assert (found.zeros_q.labels, found.zeros_p.labels) == (("4",), ("2",))


def test_whole_rows_of_logits_are_the_losses_to_the_bit():
    p, q = data()
    found = streaming.compare(p, q, form="logits", memory=WHOLE, reduction="none")
    for summary, expected in zip(measures(found), in_memory(p, q, "logits"), strict=True):
        np.testing.assert_array_equal(summary.values, expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_axes_and_reductions(axis, reduction):
    p, q = 3 * np.random.default_rng(1).normal(size=(2, 4, 5, 6))
    options = {"axis": axis, "reduction": reduction}
    found = streaming.compare(p, q, form="logits", **options, memory=SPLIT)
    pairs = (kldiv.kl_div_with_logits, q, p), (kldiv.kl_div_with_logits, p, q)
    for summary, (loss, *pair) in zip(
        measures(found), (*pairs, (kldiv.js_div_with_logits, q, p)), strict=True
    ):
        expected = loss(*pair, **options)
        if reduction == "none":
            np.testing.assert_allclose(summary.values, expected, rtol=1e-13)
        else:
            np.testing.assert_allclose(summary.value, expected, rtol=1e-13)
            assert summary.values is None
    parts = sum(each.kl_pq for each in found.contributions)
    np.testing.assert_allclose(parts, found.kl_pq.value, rtol=1e-11)


def test_a_sum_beyond_the_largest_number():
    p, q = np.full((8, 1), 1e305), np.full((8, 1), 1e-3)
    found = streaming.compare(p, q, reduction="sum")
    assert found.kl_pq.value == np.inf
    assert found.kl_pq.max == found.kl_pq.median < np.inf


def test_a_run_knows_its_steps_before_the_first():
    p, q = data("counts")
    for memory, reads in ((SPLIT, 2), (WHOLE, 1)):
        run = streaming.Run(p, q, form="counts", memory=memory)
        assert (run.done, run.steps) == (0, next(iter(run))[1])
        assert run.steps % reads == 0


def test_one_distribution_alone():
    p, q = data("probs", shape=(30,))
    found = streaming.compare(p, q, reduction="none")
    assert found.shape == ()
    np.testing.assert_allclose(found.js.values, in_memory(p, q, "probs")[2], rtol=1e-13)
    assert found.worst[0].label == ""


# --- arrays, maps, files, shards ------------------------------------------------------------------


def sharded(array):
    Path("shards").mkdir()
    for number, part in enumerate(np.split(array, [3, 4])):
        np.save(f"shards/part-{number + 9}.npy", part)


def saved(array, name):
    np.save(name, array)
    return Path(name)


GIVEN = {
    "array": lambda a: a,
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "big-endian": lambda a: a.astype(">f8"),
    "map": lambda a: np.load(saved(a, "map.npy"), mmap_mode="r"),
    "path": lambda a: saved(a, "a.npy"),
    "name": lambda a: str(saved(a, "a.npy")),
    "member": lambda a: (np.savez("a.npz", x=a, y=a[:2]), "a.npz::x")[1],
    "folder": lambda a: (sharded(a), "shards")[1],
    "pattern": lambda a: (sharded(a), "shards/part-*.npy")[1],
    "stored": lambda a: open_table(saved(a, "a.npy")).array,
    "table": lambda a: open_table(saved(a, "a.npy")),
}


@pytest.mark.parametrize("memory", [SPLIT, WHOLE])
@pytest.mark.parametrize("kind", GIVEN)
def test_everything_that_can_be_given(kind, memory):
    p, q = data()
    found = streaming.compare(GIVEN[kind](p), q, form="logits", memory=memory, reduction="none")
    for summary, expected in zip(measures(found), in_memory(p, q, "logits"), strict=True):
        np.testing.assert_allclose(summary.values, expected, rtol=1e-13)
    assert (found.p.shape, found.q.path) == ((8, 30), None)
    if kind == "member":
        assert (found.p.path, found.p.member) == (Path("a.npz"), "x")


def test_a_table_brings_labels():
    p, q = np.array([[[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], [[0.4, 0.4, 0.2], [0.6, 0.3, 0.1]]])
    rows, classes = ("mon", "tue"), ("a", "b", "c")
    found = streaming.compare(Table(p, classes=classes, rows=rows), q)
    assert {each.label for each in found.contributions} == set(classes)
    assert {row.label for row in found.worst} == set(rows)
    order = [2, 0, 1]
    other = Table(q[:, order], classes=tuple(classes[i] for i in order), rows=rows)
    with pytest.raises(InputError, match=r"the classes differ.* align=True matches them by label"):
        streaming.compare(Table(p, classes=classes, rows=rows), other)
    aligned = streaming.compare(Table(p, classes=classes, rows=rows), other, align=True)
    assert aligned.kl_qp.value == found.kl_qp.value


def test_a_pattern_of_nothing_and_a_file_with_the_name_of_one():
    p, q = data()
    with pytest.raises(InputError, match=r"none-\*.npy: a pattern is read as .* no such file"):
        streaming.compare("none-*.npy", q, form="logits")
    found = streaming.compare(saved(p, "a[1].npy"), q, form="logits")
    assert found.mean == streaming.compare(p, q, form="logits").mean


# --- stopping and going on ------------------------------------------------------------------------


def interrupt(after=0):
    """Return a callback to which Ctrl-C comes after so many calls, which it counts."""
    calls = []

    def progress(done, steps):
        calls.append((done, steps))
        if len(calls) == after:
            raise KeyboardInterrupt

    progress.calls = calls
    return progress


@pytest.mark.parametrize("memory", [SPLIT, WHOLE])
@pytest.mark.parametrize("form", ["logits", "log-probs", "counts", "auto"])
@pytest.mark.parametrize("files", [True, False])
def test_it_goes_on_to_the_same_bits(form, memory, files):
    p, q = data("counts" if form == "auto" else form)
    given = (saved(p, "p.npy"), saved(q, "q.npy")) if files else (p, q)
    options = {"form": form, "memory": memory, "reduction": "none", "top": 30}
    progress = interrupt()
    whole = streaming.compare(*given, **options, progress=progress)
    done = [done for done, _ in progress.calls]
    looked = len(done) - progress.calls[-1][1] if form == "auto" else 0
    assert done[looked:] == list(range(1, progress.calls[-1][1] + 1))
    for after in {1, looked + 1, len(done) - 2, len(done)}:
        with pytest.raises(streaming.Interrupted) as stopped:
            streaming.compare(*given, **options, checkpoint="state", progress=interrupt(after))
        assert stopped.value.share == max(after - looked, 0) / (len(done) - looked)
        assert Path(stopped.value.checkpoint).exists()
        again = interrupt()
        found = streaming.compare(*given, **options, checkpoint=Path("state"), progress=again)
        assert same(found, whole)
        assert len(again.calls) == len(done) - (after if after > looked else 0)
        assert not Path("state").exists()


@pytest.mark.parametrize("memory", [SPLIT, WHOLE])
@pytest.mark.parametrize("large", [True, False])
def test_steps_after_the_last_save_do_not_count_twice(memory, large, monkeypatch):
    """As if the process had been killed: what it did since then is done again."""
    if large:
        monkeypatch.setattr(rows, "IN_MEMORY", 8)
    p, q = data("counts")
    options = {"form": "counts", "memory": memory, "reduction": "none"}
    whole = streaming.compare(p, q, **options)
    run = streaming.Run(p, q, **options, checkpoint="state")
    for done, steps in run:
        if done == steps // 2 + 2:
            run.save()
        if done == steps - 1:
            break
    other = streaming.Run(p, q, **options, checkpoint="state")
    assert other.done == other.steps // 2 + 2
    assert same(other.result(), whole)
    other.save()
    assert list(Path.cwd().glob("state*")) == []


def test_a_run_goes_on_where_a_loop_was_left():
    p, q = data()
    whole = streaming.compare(p, q, form="logits", memory=SPLIT, reduction="none")
    run = streaming.Run(p, q, form="logits", memory=SPLIT, reduction="none")
    seen = []
    while run.done < run.steps:
        for done, steps in run:
            seen.append(done)
            assert steps == run.steps
            if done % 3 == 0:
                break
    assert seen == list(range(1, run.steps + 1))
    assert same(run.result(), whole)
    assert run.result() is run.result()
    assert list(run) == []


@pytest.mark.parametrize("options", [{"normalize": True}, {"form": "auto"}], ids=["adds", "looks"])
def test_an_earlier_loop_does_nothing_once_a_later_one_goes_on(options):
    p, q = np.random.default_rng(5).integers(1, 9, (2, 600, 200)).astype(float)
    run = streaming.Run(p, q, **options, memory=1 << 20)
    early = iter(run)
    next(early)
    for _ in run:
        pass
    assert list(early) == []
    assert same(run.result(), streaming.Run(p, q, **options, memory=1 << 20).result())


def test_an_error_of_the_last_step_stays_one():
    run = streaming.Run(np.array([[0.5, 0.6, -0.1]]), np.full((1, 3), 1 / 3))
    for _ in range(2):
        with pytest.raises(InputError, match="1 negative number"):
            run.result()


def test_a_checkpoint_without_its_file_of_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 8)
    p, q = np.random.default_rng(5).random((2, 600, 200))
    options = {"normalize": True, "memory": 1 << 20, "checkpoint": tmp_path / "state"}
    run = streaming.Run(p, q, **options)
    next(iter(run))
    run.save()
    (tmp_path / "state.rows").unlink()
    with pytest.raises(InputError, match=r"has 0 bytes, expected 14,400\. Put that file back"):
        streaming.Run(p, q, **options)


def test_a_run_without_a_checkpoint_cannot_be_saved():
    run = streaming.Run(*data(), form="logits")
    run.save_when_due()
    with pytest.raises(OptionError, match="checkpoint="):
        run.save()


def test_a_checkpoint_of_another_comparison():
    p, q = data()
    options = {"form": "logits", "memory": SPLIT, "checkpoint": "state"}
    with pytest.raises(streaming.Interrupted):
        streaming.compare(p, q, **options, progress=interrupt(2))

    def refused(said, *given, **changed):
        with pytest.raises(InputError, match=f"^checkpoint='state': it is of another .*{said}"):
            streaming.compare(*given, **{**options, **changed})

    other = p.copy()
    other[7, 29] += 1e-9
    refused(r"P: an array .* then, an array", other, q)
    refused(r"Q: an array", p, np.asfortranarray(q))
    refused(r"Q: an array .* then, q.npy of", p, saved(q, "q.npy"))
    refused(r"`top`: 10 then, 3 now", p, q, top=3)
    refused(r"`memory`: 7,?168 then", p, q, memory=WHOLE)
    with kldiv.config_context(kernel="pure"):
        refused(r"`kernel`: None then, pure now", p, q)
    assert streaming.compare(p, q, **options).mean > 0


def test_numbers_of_a_pipe_are_told_apart_by_a_checkpoint(monkeypatch):
    options = {"form": "counts", "checkpoint": "state"}

    def run(numbers):
        text = "\n".join(map(str, ["n", *numbers])).encode()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))
        return streaming.Run("-", np.array([1.0, 2, 3]), **options)

    run([1, 2, 4]).save()
    assert run([1, 2, 4]).result().count == 1
    run([1, 2, 4]).save()
    with pytest.raises(InputError, match="it is of another comparison: P"):
        run([1, 2, 5])


def test_ctrl_c_without_a_checkpoint_is_itself():
    with pytest.raises(KeyboardInterrupt) as stopped:
        streaming.compare(*data(), form="logits", memory=SPLIT, progress=interrupt(1))
    assert type(stopped.value) is KeyboardInterrupt
    assert list(Path.cwd().iterdir()) == []


def test_threads_stop_at_once(monkeypatch):
    """None of them begins another block once nobody waits for it."""
    read = blocks.Block.read
    count, before = [], []

    def slow(self, array):
        count.append(1)
        time.sleep(0.01)
        return read(self, array)

    monkeypatch.setattr(blocks.Block, "read", slow)
    monkeypatch.setattr(blocks, "_PIECE", 50)

    def progress(*_):
        before.append(len(count))
        raise KeyboardInterrupt

    p, q = data(shape=(600, 30))
    with pytest.raises(KeyboardInterrupt):
        streaming.compare(p, q, form="logits", memory=WHOLE, progress=progress)
    after = len(count)
    time.sleep(0.1)
    assert len(count) == after <= before[0] + 20


# --- settings -------------------------------------------------------------------------------------


def test_threads_have_the_settings_of_the_call(monkeypatch):
    seen = set()
    loss = kldiv.kl_div_with_logits

    def spy(*arrays, **options):
        here = threading.current_thread() is threading.main_thread()
        seen.add((here, *kldiv.get_config().values()))
        return loss(*arrays, **options)

    monkeypatch.setattr(kldiv, "kl_div_with_logits", spy)
    with kldiv.config_context(backend="numpy", kernel="pure"):
        found = streaming.compare(*data(), form="logits", memory=WHOLE)
    assert seen == {(False, "numpy", "auto", "pure")}
    assert (found.explanation.backend, found.explanation.kernel) == ("numpy", "pure")


def test_only_numpy_puts_rows_together():
    pytest.importorskip("torch")
    with kldiv.config_context(backend="torch"):
        streaming.compare(*data(), form="logits", memory=WHOLE)
        with pytest.raises(BackendError, match=r"30 logits are too long .* Leave out `backend`"):
            streaming.compare(*data(), form="logits", memory=SPLIT)


HUGE = np.full((8, 30), 1e308)
HUGE_BUT_ONE = np.where(np.arange(30) == 3, 0.0, HUGE)


@pytest.mark.parametrize("memory", [SPLIT, WHOLE])
@pytest.mark.parametrize(
    ("given", "form"),
    [
        (data("probs"), "probs"),
        ((HUGE, HUGE_BUT_ONE), "probs"),  # sums overflow, shares are infinite over infinite
        (np.full((2, 8, 30), 1e3), "log-probs"),  # probabilities overflow
    ],
)
def test_floating_point_errors_are_the_caller_s_own(given, form, memory):
    with np.errstate(all="raise"):
        run = streaming.Run(*given, form=form, memory=memory)
        for _ in run:
            assert set(np.geterr().values()) == {"raise"}
        assert run.result().warnings


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "options", "said"),
    [
        ([3, 1, 0], [1, 1, 2], {"form": "auto"}, "form='counts' or normalize=True says so"),
        (
            [2.0, 2.0],
            [0.5, 0.5],
            {},
            "P sums to 4, not to 1: the divergence is the generalised one, Σ p·log",
        ),
        ([0.1, 0.2], [0.5, 0.5], {"form": "log-probs"}, "say form='logits'"),
        ([np.nan, 1.0], [0.5, 0.5], {}, "1 number that is NaN, the first at class '0'"),
        ([0.5, np.inf], [0.5, 0.5], {}, "1 number that is infinite, the first at class '1'"),
        ([1.0, 0.0], [0.0, 1.0], {}, "Q gives no probability to 1 class, 0, with 100 % of P"),
        ([1, 1], [0, 2], {"form": "counts"}, "smoothing=0.5 adds half a count"),
        ([0, 0], [1, 1], {"form": "counts"}, "P has no probability anywhere"),
    ],
)
def test_warnings(p, q, options, said):
    found = streaming.compare(np.array(p), np.array(q), **options)
    assert any(said in warning for warning in found.warnings), found.warnings


def test_nothing_is_said_of_distributions():
    assert streaming.compare([[0.5, 0.5]] @ np.eye(2), np.full((1, 2), 0.5)).warnings == ()


HALF = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        ((HALF, HALF), {"form": "scores"}, OptionError, "form='scores': expected one of 'auto'"),
        ((HALF, HALF), {"reduction": "max"}, OptionError, "reduction='max': expected one of"),
        ((HALF, HALF), {"memory": 0}, OptionError, "memory=0: expected a positive number"),
        ((HALF, HALF), {"memory": True}, OptionError, "memory=True"),
        ((HALF, HALF), {"top": -1}, OptionError, "top=-1: expected a whole number, 0 or above"),
        ((HALF, HALF), {"axis": 1.0}, OptionError, "axis=1.0: expected a whole number"),
        ((HALF, HALF), {"smoothing": -1.0}, OptionError, "smoothing=-1.0: expected a finite"),
        ((HALF, HALF), {"smoothing": np.nan}, OptionError, "smoothing=nan: expected a finite"),
        ((HALF, HALF), {"smoothing": 1.0}, OptionError, "say normalize=True too"),
        ((HALF, HALF), {"smoothing": 1.0, "form": "logits"}, OptionError, "not to logits"),
        ((HALF, HALF), {"temperature": 2.0}, TypeError, "temperature"),
        ((HALF, HALF), {"axis": 2}, ShapeError, r"axis=2 does not exist in shape \(2, 2\)"),
        ((HALF, HALF), {"align": True}, InputError, "`align` needs labels"),
        ((HALF, HALF), {"scheduler": "tcp://x:1"}, OptionError, "takes paths, .* P is a ndarray"),
        ((HALF, HALF), {"checkpoint": "none/x"}, InputError, "checkpoint='none/x': none is no"),
        ((HALF, HALF), {"checkpoint": "."}, InputError, "checkpoint='.'"),
        ((HALF, HALF[:1]), {}, ShapeError, r"P has shape \(2, 2\), Q \(1, 2\)"),
        ((HALF[0], HALF), {}, ShapeError, r"P has shape \(2,\), Q \(2, 2\)"),
        ((HALF[:0], HALF), {}, ShapeError, r"P has shape \(0, 2\): no distributions"),
        ((HALF, HALF.tolist()), {}, LibraryError, "Q is a builtins.list: expected a NumPy array"),
        ((np.ma.array(HALF), HALF), {}, LibraryError, "P is a numpy.ma.*MaskedArray"),
        ((HALF, HALF * 1j), {}, DTypeError, "Q has dtype complex128: expected"),
        ((HALF, "none.npy"), {}, InputError, "none.npy: no such file"),
        ((HALF, -HALF), {}, InputError, "Q has 4 negative numbers, .* row '0', class '0'.*logits'"),
    ],
)
def test_errors_name_the_argument_and_the_mend(given, options, error, said):
    with pytest.raises(error, match=said):
        streaming.compare(*given, **options)


@pytest.mark.parametrize("kind", ["short", "long", "longest", "letters"])
def test_many_labels_are_matched_as_a_dict_would(kind):
    words = {
        "short": [f"w{i}" for i in range(1500)],
        "long": [f"{i % 7}-a word of some length-{i}" for i in range(1500)],
        "longest": [f"{i}-" + "x" * 40 for i in range(1500)],
        "letters": [f"ß{i}中" for i in range(1500)],
    }[kind]
    random = np.random.default_rng(0)
    p = tuple(random.permutation(words[:1400]).tolist())
    q = tuple(random.permutation(words[200:]).tolist())
    places = {label: i for i, label in enumerate(p)}
    assert alignment._found(p, q).tolist() == [places.get(label, -1) for label in q]
    assert alignment._found(p, p).tolist() == list(range(len(p)))
    for first, second in (((*p, p[3]), q), (p, (*q, q[3])), (p, (*q, words[0], words[0]))):
        with pytest.raises(InputError, match="twice"):
            alignment._found(first, second)
    nul = (*p, p[0] + "\0")
    assert alignment._found(nul, nul).tolist() == list(range(len(nul)))


@pytest.mark.parametrize("sizes", [(0, 1200), (1200, 0), (0, 0), (3, 0)])
def test_a_side_without_labels_shares_none(sizes):
    labels = ([f"label {i}" for i in range(size)] for size in sizes)
    p, q = (Table(np.ones(len(own)), classes=tuple(own)) for own in labels)
    with pytest.raises(InputError, match=r"no label is in both files: .*none"):
        alignment.align(p, q, -1, empty=0.0, fold=None)


def test_labels_whose_keys_are_equal_are_matched(monkeypatch):
    monkeypatch.setattr(alignment, "_ODD", np.zeros(4, np.uint64))
    p = tuple(f"label number {i}" for i in range(1200))
    assert alignment._found(p, p[::-1]).tolist() == list(range(1200))[::-1]
