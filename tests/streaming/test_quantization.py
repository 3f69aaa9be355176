"""The report on a quantised model: from arrays, parts, hidden states, base files, and batches."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kldiv import readers, streaming
from kldiv.errors import DTypeError, InputError, OptionError, ShapeError
from kldiv.metrics import Measured, Quantization
from kldiv.streaming import rows

CLASSES, CONTEXT, CHUNKS = 41, 64, 2
ROWS = CHUNKS * (CONTEXT - 1 - CONTEXT // 2)
SPLIT = 128 * 8 * 20
"""Memory in which rows are cut."""

pytestmark = pytest.mark.usefixtures("small")


def data():
    random = np.random.default_rng(0)
    p = (3 * random.normal(size=(ROWS, CLASSES))).astype(np.float32)
    q = p + (0.2 * random.normal(size=p.shape)).astype(np.float32)
    p[0, 5] = q[0, 9] = 10.0  # two that disagree
    tokens = random.integers(0, CLASSES, (CHUNKS, CONTEXT)).astype(np.int32)
    return p, q, tokens


def following(tokens):
    return tokens[:, CONTEXT // 2 + 1 :].reshape(-1)


def by_hand(p, q, tokens):
    """Return the report's numbers from NumPy's own functions in float64."""
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (p, q))
    one, other = np.exp(log_p), np.exp(log_q)
    kl = (one * (log_p - log_q)).sum(axis=-1)
    told = tokens >= 0
    place = np.flatnonzero(told), tokens[told]
    change = other[place] - one[place]
    ratio = log_p[place] - log_q[place]

    def measured(values):
        return [values.mean(), values.std(ddof=1) / np.sqrt(len(values))]

    def exponential(values):
        mean, error = measured(values)
        return [np.exp(mean), np.exp(mean) * error]

    mean, error = measured(change**2)
    return kl, {
        "kl": measured(kl),
        "same_top": measured((p.argmax(axis=-1) == q.argmax(axis=-1)).astype(float)),
        "acceptance": measured(np.minimum(one, other).sum(axis=-1)),
        "delta_p": measured(change),
        "rms_delta_p": [np.sqrt(mean), error / 2 / np.sqrt(mean)],
        "perplexity_p": exponential(-log_p[place]),
        "perplexity_q": exponential(-log_q[place]),
        "perplexity_ratio": exponential(ratio),
    }


def check(report, expected, rtol=1e-9):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(report, name), value, rtol=rtol, err_msg=name)


def same(one, other, rtol=0.0):
    for each in fields(one):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if isinstance(a, Measured):
            np.testing.assert_allclose(a, b, rtol=rtol, err_msg=each.name)


@pytest.mark.parametrize("memory", [None, SPLIT])
def test_the_numbers_are_those_by_hand(memory, monkeypatch):
    p, q, tokens = data()
    tokens = following(tokens)
    tokens[3] = -1
    found = streaming.compare(
        p, q, form="logits", quantization=True, next_tokens=tokens, memory=memory
    ).quantization
    kl, expected = by_hand(p.astype(float), q.astype(float), tokens)
    check(found, expected)
    assert found.same_top.value < 1
    assert (found.rows, found.next_tokens) == (ROWS, ROWS - 1)
    for percent, value in found.kl_percentiles.items():
        np.testing.assert_allclose(value, np.percentile(kl, percent), rtol=1e-9)
    np.testing.assert_allclose([found.kl_min, found.kl_max], [kl.min(), kl.max()], rtol=1e-9)
    assert found.kl_median == found.kl_percentiles[50.0]
    counts = np.histogram(kl, found.histogram.edges)[0]
    np.testing.assert_array_equal(found.histogram.counts, counts)
    assert found.histogram.below == 0
    monkeypatch.setattr(rows, "IN_MEMORY", 8)  # rows in a file, and so percentiles
    monkeypatch.setattr(rows, "_CHUNK", 16)
    again = streaming.compare(p, q, form="logits", quantization=True, next_tokens=tokens)
    same(found, again.quantization, 1e-12)
    assert again.quantization.kl_percentiles == pytest.approx(
        found.kl_percentiles, rel=1e-12, abs=0
    )


def test_other_axes_and_rows_alike():
    p, q, _ = data()
    tokens = np.arange(ROWS).reshape(2, -1) % CLASSES
    p, q = (x.reshape(2, -1, CLASSES).transpose(0, 2, 1) for x in (p, q))
    found = streaming.compare(
        p, q, form="logits", axis=1, quantization=True, next_tokens=tokens, memory=SPLIT
    ).quantization
    flat = [x.transpose(0, 2, 1).reshape(-1, CLASSES).astype(float) for x in (p, q)]
    check(found, by_hand(*flat, tokens.reshape(-1))[1])
    alike = streaming.compare(p, p, form="logits", axis=1, quantization=True).quantization
    assert (alike.kl, alike.same_top, alike.kl_max) == ((0.0, 0.0), (1.0, 0.0), 0.0)
    assert alike.histogram.below == ROWS
    assert np.isnan(alike.perplexity_ratio.value)


def test_stopped_and_continued():
    p, q, tokens = data()
    for name, array in (("p", p), ("q", q), ("t", following(tokens))):
        np.save(f"{name}.npy", array)
    options = {"form": "logits", "quantization": True, "next_tokens": "t.npy"}
    for memory in (128 * 8 * 200, SPLIT):
        run = streaming.Run("p.npy", "q.npy", memory=memory, checkpoint="a.state", **options)
        for done, _ in run:
            if done == 3:
                break
        run.save()
        run = streaming.Run("p.npy", "q.npy", memory=memory, checkpoint="a.state", **options)
        assert run.done == 3
        whole = streaming.compare(p, q, memory=memory, **options)
        same(run.result().quantization, whole.quantization)
    np.save("t.npy", following(tokens)[::-1])
    run = streaming.Run("p.npy", "q.npy", checkpoint="a.state", **options)
    run.save()
    np.save("t.npy", following(tokens))
    with pytest.raises(InputError, match="next_tokens"):
        streaming.Run("p.npy", "q.npy", checkpoint="a.state", **options)


def test_batches_on_every_library(lib):
    p, q, tokens = data()
    tokens = following(tokens)
    tokens[3] = -1
    metric, other = Quantization(), Quantization()
    for part, into in ((slice(0, 20), metric), (slice(20, None), other)):
        into.update(
            lib.array(q[part], "float32"), lib.array(p[part], "float32"), lib.array(tokens[part])
        )
    states = [each.state_dict() for each in (metric, other)]
    found = metric.merge(other).compute()
    check(found, by_hand(p.astype(float), q.astype(float), tokens)[1], 3e-5)
    kept = metric._like(states)
    same(kept.compute(), found)
    if lib.root == "numpy":  # token ids as they are often kept
        kept.reset()
        kept.update(q, p, np.abs(tokens).astype(np.uint16))
        assert kept.compute().next_tokens == ROWS


def test_percentiles_of_batches(tmp_path):
    pytest.importorskip("datasketches")
    p, q, _ = data()
    metric = Quantization(quantiles=True)
    metric.update(q, p, where=np.arange(ROWS) > 0)
    metric.save(tmp_path / "a.npz")
    found = Quantization(quantiles=True).load(tmp_path / "a.npz").compute()
    assert (found.rows, len(found.kl_percentiles)) == (ROWS - 1, 8)
    assert found.kl_min <= found.kl_median <= found.kl_max
    with pytest.raises(OptionError, match="merge"):
        metric.merge(Quantization())


# --- hidden states --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_hidden_states_and_a_weight(dtype):
    random = np.random.default_rng(0)
    hidden = random.normal(size=(5, 6, 16)).astype(dtype)
    weight = random.normal(size=(CLASSES, 16)).astype(dtype)
    np.save("hidden.npy", hidden)
    np.save("weight.npy", weight)
    table = readers.linear_logits("hidden.npy", "weight.npy")
    wide = np.float64 if dtype == "float64" else np.float32
    expected = hidden.astype(wide) @ weight.astype(wide).T
    assert (table.array.shape, table.array.dtype) == (expected.shape, wide)
    part = slice(1, 3), slice(2, 6), slice(7, 30)
    np.testing.assert_allclose(table.array[part], expected[part], rtol=1e-5, atol=1e-5)
    other = readers.linear_logits(hidden, np.round(weight, 1))
    found = streaming.compare(
        table, other, form="logits", quantization=True, memory=SPLIT, checkpoint="a.state"
    )
    whole = streaming.compare(table.array[table.array.whole], other, form="logits")
    np.testing.assert_allclose(found.quantization.kl.value, whole.mean, rtol=1e-4)
    with pytest.raises(ShapeError, match="transpose the weight"):
        readers.linear_logits(hidden, weight.T)
    with pytest.raises(DTypeError, match="weight has dtype"):
        readers.linear_logits(hidden, weight.astype(complex))


# --- base files of llama.cpp ----------------------------------------------------------------------


def base_file(path, logits, tokens):
    """Write logits as ``log_softmax`` of llama.cpp's perplexity.cpp does, number by number."""
    one = np.float32
    with Path(path).open("wb") as file:
        file.write(b"_logits_" + struct.pack("<iii", CONTEXT, logits.shape[-1], CHUNKS))
        file.write(tokens.astype("<i4").tobytes())
        for row in logits:
            top = row.max()
            least = max(row.min(), one(top - one(16)))
            log_sum = one(np.log(np.exp(row - top).astype(float).sum()))
            step = one((top - least) / one(65535))
            codes = np.zeros(len(row) + len(row) % 2, "<u2")
            if step:
                above = row > least
                codes[: len(row)][above] = np.rint(one(1) / step * (row[above] - least))
            file.write(struct.pack("<ff", step, one(one(least - top) - log_sum)))
            file.write(codes.tobytes())


def test_base_files_are_read():
    p, _, tokens = data()
    p[1] = np.linspace(0, 40, CLASSES)  # spans more than 16 nats
    p[2] = 1.0
    base_file("p.kld", p, tokens)
    table = readers.open_table("p.kld")
    assert isinstance(table.array, readers.Stored)
    with pytest.raises(InputError, match="at most 8 are accepted"):
        readers.open_table("p.kld", max_bytes=8)
    np.testing.assert_array_equal(table.next_tokens, following(tokens))
    exact = p - np.logaddexp.reduce(p.astype(float), axis=-1, keepdims=True)
    there = p > p.max(axis=-1, keepdims=True) - 16
    found = readers.read("p.kld").array
    np.testing.assert_array_equal(found == -np.inf, ~there)
    np.testing.assert_allclose(found[there], exact[there], atol=1.3e-4)
    part = slice(1, 4), slice(10, 33)
    np.testing.assert_array_equal(table.array[part], found[part])


def test_base_files_are_compared():
    p, q, tokens = data()
    base_file("p", p, tokens)
    base_file("q", q, tokens)
    exact = by_hand(p.astype(float), q.astype(float), following(tokens))[1]
    for one, other in (("p", "q"), ("p", q), (p, "q")):
        found = streaming.compare(one, other, form="logits", quantization=True).quantization
        check(found, {name: exact[name] for name in ("kl", "same_top", "acceptance")}, 1e-4)
        assert 0 < found.next_tokens <= ROWS
        assert np.isfinite(found.perplexity_ratio.value)
    alike = streaming.compare("p", p, form="logits", quantization=True)
    assert 0 < alike.quantization.kl_max < 1e-8  # the resolution that the documentation states
    assert "16 bits" in alike.warnings[0]
    with pytest.raises(OptionError, match="`memory` is too little"):
        streaming.compare("p", p, form="logits", memory=SPLIT)
    base_file("other", q, tokens + 1)
    with pytest.raises(InputError, match="different texts"):
        streaming.compare("p", "other", form="logits", quantization=True)


def test_what_a_base_file_cannot_hold_is_bounded_not_left_out():
    """Where the models contradict each other, the divergence is what the range allows."""
    p, q, tokens = data()
    p[:], q[:] = p / 3, q / 3
    p[:, 5] += 30.0
    q[:, 9] += 30.0
    base_file("p", p, tokens)
    base_file("q", q, tokens)
    exact = streaming.compare(p, q, form="logits", reduction="none")
    for one, other in (("p", "q"), ("p", q), (p, "q")):
        found = streaming.compare(one, other, form="logits", reduction="none")
        for name in ("kl_pq", "kl_qp", "js"):
            value, true = getattr(found, name).values, getattr(exact, name).values
            assert np.all(value <= true * (1 + 1e-5)), (one, name)
            assert np.all(value >= np.minimum(true, 15.9) * (1 - 1e-5)), (one, name)


def test_damaged_base_files():
    p, _, tokens = data()
    base_file("p", p, tokens)
    whole = Path("p").read_bytes()
    for cut, words in (
        (whole[:-9], "1 are there"),
        (whole[:15], "declares"),
        (whole + b"x", "2 are there"),
    ):
        Path("cut").write_bytes(cut)
        with pytest.raises(InputError, match=words):
            readers.read("cut")
    with pytest.raises(InputError, match="one array"):
        readers.read("p::a")
    array = readers.open_table("p").array
    Path("p").write_bytes(whole[:500])
    with pytest.raises(InputError, match="has changed since"):
        array[array.whole]


# --- options and the command ----------------------------------------------------------------------


LOGITS = np.ones((3, 2))
NEEDED = {"form": "logits", "quantization": True}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quantization": True}, OptionError, "say form='logits'"),
        ({"next_tokens": [1]}, OptionError, "say quantization=True"),
        ({"form": "logits", "next_tokens": [1]}, OptionError, "say quantization=True"),
        ({**NEEDED, "next_tokens": np.array([1, 2])}, ShapeError, r"expected \(3,\)"),
        ({**NEEDED, "next_tokens": np.array([1.5, 0, 1])}, DTypeError, "whole numbers"),
        ({**NEEDED, "next_tokens": np.array([np.inf, 0, 1])}, DTypeError, "whole numbers"),
        ({**NEEDED, "next_tokens": np.array([1, 0, 2])}, InputError, "there are 2 classes"),
    ],
)
def test_options_that_need_others_or_do_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        streaming.compare(LOGITS, LOGITS, **options)


def test_the_command(command):
    pytest.importorskip("matplotlib")
    p, q, tokens = data()
    base_file("p.kld", p, tokens)
    base_file("q.kld", q, tokens)
    flags = ("compare", "p.kld", "q.kld", "--from", "logits", "--quantization", "--plot", "a.png")
    status, out, err = command(*flags)
    assert status == 0, err
    for words in ("99.9 %", "median", "same likeliest token", "RMS of Δp", "perplexity of Q by"):
        assert words in out
    assert "16 bits" in err
    status, out, err = command(*flags[:-2], "--json")
    found = json.loads(out)["quantization"]
    whole = streaming.compare("p.kld", "q.kld", form="logits", quantization=True).quantization
    assert found["kl"] == {"value": whole.kl.value, "standard_error": whole.kl.standard_error}
    assert found["kl_percentiles"]["99.9"] == whole.kl_percentiles[99.9]
    np.save("hidden.npy", p[:, :16])
    np.save("weight.npy", q[:, :16])
    status, out, err = command(
        *("compare", "hidden.npy", "hidden.npy", "--hidden", "--weight", "weight.npy"),
        *("--from", "logits", "--quantization", "--json"),
    )
    assert json.loads(out)["quantization"]["kl"]["value"] == 0, err
    for more, words in ((("--hidden",), "--weight FILE"), (("--weight", "a"), "say --hidden")):
        status, out, err = command("compare", "p.kld", "q.kld", *more)
        assert status == 2
        assert words in err
