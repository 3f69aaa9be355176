"""Sparse teachers on disk: there and back, whole or not at all, and hostile files."""

from __future__ import annotations

import numpy as np
import pytest

import kldiv
from kldiv import SparseTeacher
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError
from kldiv.streaming import TeacherWriter, open_teacher

safetensors = pytest.importorskip("safetensors.numpy")

LOGITS = np.random.default_rng(0).normal(size=(5, 3, 40)).astype("f4")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "teacher.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_there_and_back(path, dtype):
    whole = kldiv.topk_log_probs(LOGITS, 6, 2.0)
    options = {"rows": 15, "k": 6, "vocabulary": 40, "temperature": 2.0, "dtype": dtype}
    with TeacherWriter(path, **options) as writer:
        for part in (slice(0, 2), slice(2, 5)):
            writer.write(SparseTeacher(*(each[part] for each in whole[:3]), 2.0))
        assert not path.exists()
    teacher = open_teacher(path)
    assert (len(teacher), teacher.k, teacher.vocabulary, teacher.temperature) == (15, 6, 40, 2.0)
    blocks = [*teacher.blocks(4)]
    assert [len(block.rest) for block in blocks] == [4, 4, 4, 3]
    for index, width in enumerate((6, 6, 1)):
        found = np.concatenate([block[index] for block in blocks]).reshape(15, width)
        wanted = np.reshape(whole[index], (15, width))
        np.testing.assert_array_equal(found, wanted.astype(dtype) if index == 0 else wanted)
    assert teacher[3:5].temperature == 2.0
    assert len(teacher[-2:].log_probs) == 2
    theirs = safetensors.load_file(path)
    assert {name: array.shape for name, array in theirs.items()} == {
        "temperature": (1,),
        "vocabulary": (1,),
        "log_probs": (15, 6),
        "indices": (15, 6),
        "rest": (15,),
    }


def test_a_rest_that_float32_does_not_hold(path):
    """Of rest 0 the reverse divergence is infinite."""
    logits = np.array([[0.0, 1.0, -150.0]])
    own, student = kldiv.topk_log_probs(logits, 2), np.array([[0.1, 0.9, 0.0]])
    with TeacherWriter(path, rows=1, k=2, vocabulary=3) as writer:
        writer.write(own)
    block = open_teacher(path)[:]
    assert block.rest == own.rest
    assert 0 < block.rest < 1e-60
    wanted = kldiv.kl_div_with_logits(logits, student)
    found = kldiv.topk_kl_div_with_logits(student, block, beta=1.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_other_libraries_and_no_rest(torch, path):
    log_probs, indices, *_ = kldiv.topk_log_probs(torch.tensor(LOGITS[0]), 3)
    log_probs[0, 2], indices[0, 2] = -np.inf, 99
    with TeacherWriter(path, rows=3, k=3, vocabulary=40, rest=False) as writer:
        writer.write(SparseTeacher(log_probs, indices))
    block = open_teacher(path)[:]
    assert block.rest is None
    assert block.indices[0, 2] == 0
    np.testing.assert_array_equal(block.log_probs, log_probs.numpy())


def test_whole_or_not_at_all(path):
    own = kldiv.topk_log_probs(LOGITS[0], 2)
    for rows, teacher, error, words in (
        (4, own, ShapeError, "3 rows were written of 4; nothing is kept"),
        (2, own, ShapeError, "the file was announced with 2"),
        (3, own._replace(temperature=2.0), OptionError, "the file's are at 1.0"),
        (3, own._replace(indices=own.indices + 40), OptionError, "is none of the 40 classes"),
        (3, own._replace(rest=None), OptionError, "write with rest=False"),
        (3, own._replace(indices=own.indices + 0.7), DTypeError, "expected integers"),
        (3, own._replace(indices=np.ma.array(own.indices, mask=True)), LibraryError, "masked"),
        (3, kldiv.topk_log_probs(LOGITS[0], 3), ShapeError, "expected 2 classes"),
    ):
        with (
            pytest.raises(error, match=words),
            TeacherWriter(path, rows=rows, k=2, vocabulary=40) as writer,
        ):
            writer.write(teacher)
        assert not [*path.parent.iterdir()]
    for wrong in ({"k": 41}, {"temperature": 0.0}, {"dtype": "int8"}):
        with pytest.raises(OptionError):
            TeacherWriter(path, **{"rows": 1, "k": 2, "vocabulary": 40, **wrong})


def test_files_that_are_none(path):
    with pytest.raises(InputError):
        open_teacher(path)
    there = {
        "log_probs": np.zeros((3, 2), "f4"),
        "indices": np.zeros((2, 2), "i4"),
        "temperature": np.ones(1),
        "vocabulary": np.ones(1, np.int64),
    }
    there["rest"] = np.zeros(3, "f4")
    right = {**there, "indices": np.zeros((3, 2), "i4")}
    for wrong in (
        there,
        {**right, "temperature": np.full(1, np.nan)},
        {**right, "vocabulary": np.zeros(0, np.int64)},
        {**right, "indices": np.zeros((3, 2), "f4")},
        {**right, "rest": np.zeros(2, "f4")},
    ):
        safetensors.save_file(wrong, path)
        with pytest.raises(InputError, match="is no sparse teacher"):
            open_teacher(path)
    safetensors.save_file(right, path)
    assert len(open_teacher(path)) == 3
    safetensors.save_file({"log_probs": there["log_probs"]}, path)
    with pytest.raises(InputError, match="indices"):
        open_teacher(path)
