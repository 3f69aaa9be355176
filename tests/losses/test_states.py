"""`KLState`: any split, any order, saved in between, gives the divergence of the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import kldiv
from kldiv.errors import InputError, OptionError, ShapeError
from kldiv.formulas.state import State

RNG = np.random.default_rng(7)
T = RNG.normal(size=(3, 240)) * 3
S = T + 1e-3 * RNG.normal(size=T.shape)
T[0, :80] = -np.inf  # a first block that the teacher gives no mass
S[0, :80] = -30.0
CUTS = [0, 80, 81, 200, 240]


def parts(lib, cuts, temperature=1.0):
    return [
        kldiv.KLState.from_logits(
            lib.array(S[:, a:b]), lib.array(T[:, a:b]), temperature=temperature
        )
        for a, b in pairwise(cuts)
    ]


@pytest.fixture
def whole(lib):
    return lib.numpy(
        kldiv.kl_div_with_logits(lib.array(S), lib.array(T), reduction="none", temperature=1.0)
    )


@pytest.mark.leave_out(lambda lib, order: lib.root == "dask" and order[0] and "thousands of tasks")
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_any_order_gives_the_whole(lib, whole, order):
    states = parts(lib, CUTS)
    total = states[order[0]]
    for index in order[1:]:
        total = total + states[index]
    result = total.kl()
    lib.assert_like(result, (3,), lib.widest)
    np.testing.assert_allclose(
        lib.numpy(result), whole, rtol=1e-6 if lib.widest == "float32" else 2e-15
    )


def test_merging_changes_neither(lib):
    first, second, *_ = parts(lib, CUTS)
    before = lib.numpy(first.kl()), lib.numpy(second.kl())
    first.merge(second)
    np.testing.assert_array_equal(lib.numpy(first.kl()), before[0])
    np.testing.assert_array_equal(lib.numpy(second.kl()), before[1])


def test_saved_between_merges(lib, whole, tmp_path):
    total = None
    for index, part in enumerate(parts(lib, CUTS)):
        part.save(tmp_path / f"{index}.npz")
        loaded = kldiv.KLState.load(tmp_path / f"{index}.npz")
        total = loaded if total is None else total + loaded
    np.testing.assert_allclose(total.kl(), whole, rtol=1e-6 if lib.widest == "float32" else 2e-15)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.npz" for i in range(4)]
    assert (tmp_path / "0.npz").stat().st_size < 8192


def test_temperature_and_axis():
    whole = kldiv.kl_div_with_logits(S.T, T.T, axis=0, temperature=3.0, reduction="none")
    states = [
        kldiv.KLState.from_logits(S.T[a:b], T.T[a:b], axis=0, temperature=3.0)
        for a, b in pairwise(CUTS)
    ]
    total = states[0] + states[1] + states[2] + states[3]
    np.testing.assert_allclose(total.kl(), whole, rtol=2e-15)
    with pytest.raises(OptionError, match=r"temperatures 3\.0 and 1\.0"):
        total.merge(kldiv.KLState.from_logits(S, T))


def test_many_rows_and_many_classes_are_taken_in_blocks(monkeypatch):
    from kldiv.formulas import blocks

    whole = kldiv.kl_div_with_logits(S, T, reduction="none")
    monkeypatch.setattr(blocks, "BLOCK_CLASSES", 7)
    monkeypatch.setattr(kldiv.formulas.blocks, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(kldiv.KLState.from_logits(S, T).kl(), whole, rtol=2e-15)


def test_no_gradient_flows_through_it():
    torch = pytest.importorskip("torch")
    s, t = (torch.tensor(a, requires_grad=True) for a in (S, T))
    assert not kldiv.KLState.from_logits(s, t).kl().requires_grad


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_what_is_no_state(tmp_path, content):
    file = tmp_path / "state.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is not a state"):
        kldiv.KLState.load(file)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        kldiv.KLState.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(InputError, match="is not a state"):
        kldiv.KLState.load(tmp_path / "other.npz")


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    state = kldiv.KLState.from_logits(S, T)
    state.save(tmp_path / "state.npz")
    before = (tmp_path / "state.npz").read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        state.save(tmp_path / "state.npz")
    assert (tmp_path / "state.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_errors():
    state = kldiv.KLState.from_logits(S, T)
    with pytest.raises(TypeError, match="merges with a KLState"):
        state.merge(1.0)
    with pytest.raises(ShapeError, match="merge states of the same rows"):
        state.merge(kldiv.KLState.from_logits(S[:2], T[:2]))
    with pytest.raises(ShapeError, match="classes"):
        kldiv.KLState.from_logits(S, T[:, :7])
    with pytest.raises(OptionError, match="positive and finite"):
        kldiv.KLState.from_logits(S, T, temperature=0.0)
    assert repr(state) == "KLState(rows=(3,), temperature=1.0, library='numpy')"


@pytest.mark.leave_out(lambda lib: lib.widest == "float32" and f"{lib.value} has no float64 here")
def test_of_two_dtypes_the_wider(lib):
    first = kldiv.KLState.from_logits(*(lib.array(a[:, :80], "float32") for a in (S, T)))
    second = kldiv.KLState.from_logits(*(lib.array(a[:, 80:], "float64") for a in (S, T)))
    rounded = [np.hstack([a[:, :80].astype(np.float32), a[:, 80:]]) for a in (S, T)]
    whole = kldiv.kl_div_with_logits(*rounded, reduction="none")
    for total in (first + second, second + first):
        lib.assert_like(total.kl(), (3,), "float64")
        np.testing.assert_allclose(lib.numpy(total.kl()), whole, rtol=1e-6)
    lib.assert_like(first.kl(), (3,), "float32")


def changed(path, **fields):
    kldiv.KLState.from_logits(S, T).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **fields})
    return path


def test_a_machine_of_the_other_endianness(tmp_path):
    state = kldiv.KLState.from_logits(S, T)
    other = {name: a.astype(">f8") for name, a in state.state._asdict().items()}
    loaded = kldiv.KLState.load(changed(tmp_path / "state.npz", **other))
    assert all(array.dtype.isnative for array in loaded.state)
    np.testing.assert_array_equal(loaded.kl(), state.kl())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"y": np.zeros((3, 2))}, "differ in shape"),
        ({"y": np.zeros((3, 1), np.float32)}, "differ in shape or dtype"),
        ({name: np.zeros(3) for name in State._fields}, "one number per row"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"temperature": np.ones(3)}, "is not a state"),
        ({"y": np.array([[None]] * 3)}, "unpickling"),
        ({"format": 99}, "format 99"),
    ],
)
def test_states_that_lie(tmp_path, fields, said):
    with pytest.raises(InputError, match=said):
        kldiv.KLState.load(changed(tmp_path / "state.npz", **fields))


def test_others_may_read_what_is_saved(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    kldiv.KLState.from_logits(S, T).save(tmp_path / "state.npz")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "state.npz")]
    assert modes[0] == modes[1]
