"""``kldiv compare`` on files larger than memory: little of it, few reads, stopped, continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from streaming import inputs

pytest.importorskip("click")
pytest.importorskip("rich")


from kldiv import streaming
from kldiv.cli import progress
from kldiv.readers import Stored, open_table, sources, stored
from kldiv.streaming import blocks, rows
from kldiv.streaming.resume import uninterrupted

MEASURES = ("kl_pq", "kl_qp", "js")
data = partial(inputs.data, shape=(12, 30), distance=1e-3)


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts what is in its background deaf to SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, where everything is large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "STORED", 1)
    monkeypatch.setattr(blocks, "_RUN", 1)
    return tmp_path


@pytest.fixture
def run(work, command):
    return partial(command, "compare")


@pytest.fixture
def compare(run):
    def compare(*arguments):
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        found = json.loads(out)
        for name in "pq":
            found[name].pop("path")
        return found

    return compare


def listing():
    return sorted(each.name for each in Path.cwd().iterdir())


def save(form, **options):
    p, q = data(form, **options)
    np.save("p.npy", p)
    np.save("q.npy", q)
    return p, q


# --- memory ---------------------------------------------------------------------------------------

LIMITED = """
import resource, sys, threading
threading.stack_size(1 << 20)  # of the threads, which is counted, used or not
import kldiv.streaming.blocks as blocks, kldiv.cli.compare, kldiv.cli.report
from kldiv.cli import main
limit = int(sys.argv.pop(1))
blocks.BUDGET = 64 << 10
try:  # what every run needs, large or small
    small = ["compare", "small.npy", "small.npy", "--from", "logits", "--kernel", "pure"]
    sys.argv[1:], wanted = small, sys.argv[1:]
    main()
except SystemExit as stopped:
    assert not stopped.code
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
sys.argv[1:] = wanted
"""
MIB = 1 << 20


def limited(limit, *arguments, code="main()"):
    """Run a command that may allocate so many bytes more than the same for a small file."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED + code, str(limit), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KLDIV_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("shape", [(1536, 1 << 12), (6, 1 << 20)])
def test_memory_is_a_fraction_of_the_files(work, shape):
    rng = np.random.default_rng(1)
    for name in "pq":
        np.save(f"{name}.npy", rng.standard_normal(shape, dtype=np.float32))
    np.save("small.npy", np.ones((4, 1 << 12), np.float32))
    size, limit = 24 * MIB, 16 * MIB
    assert Path("p.npy").stat().st_size > size - 1
    options = "--from logits --kernel pure --json --top 5000".split()
    done = limited(limit, "compare", "p.npy", "q.npy", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("\n{") :])
    p, q = (np.load(f"{name}.npy", mmap_mode="r")[3].astype(np.float64) for name in "pq")
    assert found["rows"]["count"] == shape[0]
    log_p, log_q = (x - np.logaddexp.reduce(x) for x in (p, q))
    third = float(np.sum(np.exp(log_p) * (log_p - log_q)))
    assert third in [pytest.approx(each["kl_pq"]) for each in found["rows"]["worst"]]
    code = "import numpy; numpy.load('p.npy'); print('loaded')"
    whole = limited(limit, code=code)
    assert "MemoryError" in whole.stderr or "Unable to allocate" in whole.stderr


# --- layouts --------------------------------------------------------------------------------------


def write(name, array, layout):
    """Write an array in one of the ways that are read in parts; return what names it."""
    if layout in {"C", "F"}:
        np.save(f"{name}.npy", np.asarray(array, order=layout))
        return f"{name}.npy"
    if layout.startswith("shards"):
        Path(name).mkdir()
        axis = int(layout[-1])
        for number, part in enumerate(np.split(array, [5, 6], axis=axis)):
            np.save(f"{name}/{number + 9}.npy", part)
        return name
    if layout == "safetensors":
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file({"x": array}, f"{name}.safetensors")
        return f"{name}.safetensors"
    zarr = pytest.importorskip("zarr")
    version, *chunks = map(int, layout.split("-")[1:])
    store = zarr.create_array(
        store=f"{name}.zarr", shape=array.shape, chunks=chunks, dtype="f8", zarr_format=version
    )
    store[...] = array
    return f"{name}.zarr"


LAYOUTS = ["C", "F", "shards0", "shards1", "safetensors", "zarr-2-5-30", "zarr-3-5-8"]


@pytest.mark.parametrize("form", ["logits", "probs"])
@pytest.mark.parametrize("budget", [8 * 7, 8 * 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_the_result(work, compare, monkeypatch, layout, budget, form):
    p, q = save(form)
    expected = compare("p.npy", "q.npy", "--from", form, "--reduction", "none", "--top", 99)
    monkeypatch.setattr(blocks, "BUDGET", budget)
    axis = ["--shard-axis", layout[-1]] if layout.startswith("shards") else []
    names = write("other", p, layout), write("mine", q, "C")
    assert isinstance(open_table(names[0], shard_axis=int((axis or [0, 0])[1])).array, Stored)
    options = ["--from", form, "--reduction", "none", "--top", 99]
    for found in (
        compare(*names, *axis, *options),
        {**compare(*names[::-1], *axis, *options), "swapped": True},
    ):
        swapped = found.pop("swapped", False)
        pairs = zip(MEASURES, ("kl_qp", "kl_pq", "js") if swapped else MEASURES, strict=True)
        for measure, other in pairs:
            np.testing.assert_allclose(
                np.array(found[measure], float), np.array(expected[other], float), rtol=2e-13
            )
        sums = {each["index"]: each["js"] for each in found["contributors"]}
        for each in expected["contributors"]:
            np.testing.assert_allclose(sums[each["index"]], each["js"], rtol=1e-9, atol=1e-16)


# --- how often files are read ---------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """How many times each element of a file was read, by the name of the file."""
    counts = {}
    read = stored.StoredFile.__getitem__

    def spy(self, index):
        count = counts.setdefault(self.path.name, np.zeros(self.shape, int))
        count[index] += 1
        return read(self, index)

    monkeypatch.setattr(stored.StoredFile, "__getitem__", spy)
    return counts


@pytest.mark.parametrize(
    ("form", "budget", "times"),
    [
        ("logits", 8 * 40, 1),
        ("log-probs", 8 * 40, 1),
        ("counts", 8 * 40, 1),
        ("auto", 8 * 40, 2),
        ("logits", 8 * 7, 2),
        ("log-probs", 8 * 7, 1),
        ("probs", 8 * 7, 1),
        ("counts", 8 * 7, 2),
        ("auto", 8 * 7, 3),
    ],
)
def test_each_number_is_read_so_many_times(work, compare, monkeypatch, reads, form, budget, times):
    save(form)
    monkeypatch.setattr(blocks, "BUDGET", budget)
    compare("p.npy", "q.npy", "--from", form)
    for count in reads.values():
        assert (count == times).all()


def test_one_fraction_settles_what_a_file_holds(work, compare, monkeypatch, reads):
    save("probs", shape=(400, 30))
    monkeypatch.setattr(blocks, "BUDGET", 8 * 40)
    assert compare("p.npy", "q.npy")["p"]["form"] == "probs"
    assert all((count[-200:] == 1).all() for count in reads.values())


@pytest.mark.parametrize("chunks", [(5, 30), (5, 8)])
def test_each_chunk_is_decompressed_once(work, compare, monkeypatch, chunks):
    pytest.importorskip("zarr")
    from kldiv.readers import zarr_store

    p, q = data("logits")
    names = [write(n, a, f"zarr-3-{chunks[0]}-{chunks[1]}") for n, a in (("p", p), ("q", q))]
    times = {}
    read = zarr_store._ZarrArray.__getitem__

    def spy(self, index):
        for chunk in np.ndindex(-(-12 // chunks[0]), -(-30 // chunks[1])):
            pairs = zip(chunk, chunks, index, strict=True)
            if all(i * n < part.stop and (i + 1) * n > part.start for i, n, part in pairs):
                key = (self._source.path.name, chunk)
                times[key] = times.get(key, 0) + 1
        return read(self, index)

    monkeypatch.setattr(zarr_store._ZarrArray, "__getitem__", spy)
    monkeypatch.setattr(blocks, "BUDGET", 8 * 16)
    compare(*names, "--from", "logits")
    assert set(times.values()) == {1}
    assert len(times) == 2 * -(-12 // chunks[0]) * -(-30 // chunks[1])


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("odd", [None, np.inf, -np.inf, np.nan])
def test_what_is_told_of_many_rows(monkeypatch, size, odd):
    monkeypatch.setattr(rows, "IN_MEMORY", 8)
    monkeypatch.setattr(rows, "_CHUNK", 64)
    rng = np.random.default_rng(size)
    values = rows.room((3, size))
    assert isinstance(values, np.memmap)
    values[...] = rng.normal(size=(3, size)) * 10.0 ** rng.integers(-300, 300, (3, size))
    if odd is not None:
        values[0, size // 2] = odd
    told = rows.statistics(values[0])
    with np.errstate(invalid="ignore"):
        assert told.median == np.median(values[0]) or np.isnan(odd)
    assert told.max == values[0].max() or np.isnan(odd)
    assert told.infinite == np.isinf(values[0]).sum()
    best = np.where(np.isnan(values[0]), -np.inf, values[0])
    assert rows.worst(values, 5) == np.argsort(-best, kind="stable")[:5].tolist()


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def stop(monkeypatch):
    """Have Ctrl-C come after so many steps; return how many were done."""
    done = []
    reach = progress.Progress.reach

    def stop(after):
        done.clear()

        def counted(self, step, steps):
            reach(self, step, steps)
            done.append(step)
            if len(done) == after:
                raise KeyboardInterrupt

        monkeypatch.setattr(progress.Progress, "reach", counted)
        return done

    return stop


@pytest.fixture
def stopped(work, run, monkeypatch, stop):
    save("logits", shape=(90, 30))
    monkeypatch.setattr(blocks, "BUDGET", 8 * 40)
    monkeypatch.setattr(blocks, "_STEP", 1)
    stop(2)
    assert run("p.npy", "q.npy", "--from", "logits", "--checkpoint", "state")[0] == 130
    stop(10**9)
    return ["p.npy", "q.npy", "--from", "logits", "--checkpoint", "state"]


def test_a_checkpoint_of_other_options_or_another_file(run, stopped):
    for options, said in (
        (["--top", 3], "--top: 10 then, 3 now"),
        (["--axis", 0], "--axis: -1 then, 0 now"),
        (["--from", "log-probs"], "--from: logits then, log-probs now"),
        (["--kernel", "pure"], "--kernel: None then, pure now"),
    ):
        status, out, err = run(*stopped, *options)
        assert (status, out) == (4, "")
        assert said in err
    status, _, err = run("q.npy", "q.npy", *stopped[2:])
    assert status == 4
    assert "P: p.npy of" in err
    time.sleep(0.01)
    p = np.load("p.npy")
    np.save("p.npy", p + 1)
    status, _, err = run(*stopped)
    assert status == 4
    assert "modified" in err
    assert "Q:" not in err


@pytest.mark.parametrize("content", [b"my thesis", b"", "npz", "newer"])
def test_a_file_that_is_no_checkpoint_is_left_alone(work, run, stopped, content):
    if content == "npz":
        np.savez("other.npz", a=np.ones(3))
        Path("other.npz").replace("state")
    elif content == "newer":
        with np.load("state") as file:
            arrays = dict(file)
        text = arrays["json"].tobytes().replace(b'"format": 4', b'"format": 9')
        arrays["json"] = np.frombuffer(text, np.uint8)
        with Path("state").open("wb") as file:
            np.savez(file, **arrays)
    else:
        (work / "state").write_bytes(content)
    before = (work / "state").read_bytes()
    status, _, err = run(*stopped)
    assert status == 4
    assert ("of format 9" if content == "newer" else "is no checkpoint") in err
    assert (work / "state").read_bytes() == before


def test_very_many_rows_lie_beside_the_checkpoint(work, run, monkeypatch, stop):
    save("logits", shape=(90, 30))
    monkeypatch.setattr(blocks, "BUDGET", 8 * 40)
    monkeypatch.setattr(blocks, "_STEP", 1)
    arguments = ["p.npy", "q.npy", "--from", "logits", "--json", "--reduction", "none"]
    whole = run(*arguments)[1]
    monkeypatch.setattr(rows, "IN_MEMORY", 8)
    assert run(*arguments)[1] == whole
    stop(3)
    status, out, err = run(*arguments, "--checkpoint", "state")
    assert (status, out) == (130, "")
    assert "Interrupted after" in err
    assert "which state keeps" in err
    assert Path("state.rows").stat().st_size == 3 * 8 * 90
    with np.load("state") as file:
        assert "rows" not in file
    stop(10**9)
    assert run(*arguments, "--checkpoint", "state")[1] == whole
    assert listing() == ["p.npy", "q.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_process_that_is_stopped_or_killed(work, how):
    save("logits", shape=(3000, 200))
    code = (
        "import sys, time\n"
        "from kldiv.streaming import blocks as b, resume as c, work as w\n"
        "from kldiv.readers import sources\n"
        "sources.STORED = 1; b.BUDGET = 8 * 4000; b._STEP = 1; c._EVERY = 0.0; c._SHARE = 0\n"
        "second = w.Work.second\n"
        "def slow(*arguments):\n"
        "    time.sleep(SLEEP); return second(*arguments)\n"
        "w.Work.second = slow\n"
        "from kldiv.cli import main; main()"
    )
    arguments = ["compare", "p.npy", "q.npy", "--from", "logits", "--json", "--checkpoint", "state"]

    def start(sleep, *more):
        command = [sys.executable, "-c", code.replace("SLEEP", str(sleep)), *arguments, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with start(0) as process:
        whole = process.communicate()[0]
    with start(0.2) as process:
        while not Path("state").exists():
            time.sleep(0.01)
        process.send_signal(getattr(signal, how))
        out, err = process.communicate()
    assert process.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
    assert out == ""
    assert ("give the same command again" in err) == (how == "SIGINT")
    with np.load("state") as file:
        assert 0 < json.loads(file["json"].tobytes())["done"] < 20
    with start(0) as process:
        assert process.communicate()[0] == whole
    assert "state" not in listing()


def test_ctrl_c_waits_until_a_step_is_added():
    done = []

    def add():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        add()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("form", ["logits", "auto"])
def test_a_cluster_finds_the_same(work, compare, monkeypatch, cluster, form):
    monkeypatch.setattr(sources, "STORED", 16 << 20)  # what the workers have
    save(form, shape=(40, 30_000))
    arguments = ["p.npy", "q.npy", "--from", form, "--reduction", "none"]
    monkeypatch.setattr(blocks, "_PIECE", 1)
    monkeypatch.setattr(blocks, "_STEP", 1)
    here = compare(*arguments)
    assert compare(*arguments, "--scheduler", cluster.scheduler_address) == here


@pytest.mark.slow
def test_a_cluster_is_stopped_and_goes_on(work, run, monkeypatch, cluster, stop):
    monkeypatch.setattr(sources, "STORED", 16 << 20)
    monkeypatch.setattr(blocks, "_STEP", 1)
    save("logits", shape=(400, 20_000))
    arguments = ["p.npy", "q.npy", "--from", "logits", "--json", "--checkpoint", "state"]
    whole = run(*arguments)[1]
    arguments += ["--scheduler", cluster.scheduler_address]
    stop(1)
    status, _, err = run(*arguments)
    assert status == 130
    assert "Interrupted after" in err
    stop(10**9)
    with cluster.get_client() as client:
        assert not client.processing() or not any(client.processing().values())
    assert run(*arguments)[1] == whole


def test_workers_see_that_a_file_has_changed(work, cluster):
    """They keep small files in memory, for one run."""
    paths = (work / "p.npy", work / "q.npy")
    for shift in (0.0, 0.1, 0.2, 0.3):
        p, q = data("logits")
        np.save(paths[0], p)
        np.save(paths[1], q + shift * np.arange(30))
        options = {"form": "logits", "scheduler": cluster.scheduler_address}
        found = streaming.compare(*paths, **options)
        assert found.js.value == streaming.compare(*paths, form="logits").js.value


def test_a_scheduler_that_does_not_answer_and_none_that_could(work, run, monkeypatch):
    pytest.importorskip("distributed")
    from kldiv.streaming import runners

    save("logits")
    monkeypatch.setattr(runners, "_PATIENCE", 1)
    arguments = ["p.npy", "q.npy", "--from", "logits", "--scheduler", "tcp://127.0.0.1:9"]
    start = time.monotonic()
    status, _, err = run(*arguments)
    assert status == 4
    assert "--scheduler tcp://127.0.0.1:9: no Dask scheduler answers there" in err
    assert time.monotonic() - start < 10 * runners._PATIENCE
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, _, err = run(*arguments)
    assert status == 2
    assert "pip install" in err


def test_a_file_that_the_workers_do_not_see(work, run, monkeypatch, cluster):
    save("logits")
    monkeypatch.setattr(os, "getcwd", lambda: "/nowhere")
    status, _, err = run(
        "p.npy", "q.npy", "--from", "logits", "--scheduler", cluster.scheduler_address
    )
    assert status == 4
    assert "/nowhere/p.npy: no such file" in err
