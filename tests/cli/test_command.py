"""The command as a whole: help, exit codes, streams, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import kldiv
from kldiv import streaming
from kldiv.cli import progress
from kldiv.cli.app import app
from kldiv.cli.flags import in_flags
from kldiv.streaming import blocks

LETTERS = ("examples/letters/english.csv", "examples/letters/german.csv")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with the two distributions whose divergences are known."""
    monkeypatch.chdir(tmp_path)
    np.save("p.npy", np.array([9, 12, 4]) / 25)
    np.save("q.npy", np.full(3, 1 / 3))
    np.save("one.npy", [0.0, 1.0, 0.0])
    return tmp_path


def spawn(*arguments, code=None, encoding="utf-8", **environment):
    """Run the command in a process of its own; return what `subprocess.run` does."""
    start = ["-c", code] if code else ["-m", "kldiv"]
    inherited = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env={**inherited, "PYTHONUTF8": "1", **environment},
        capture_output=True,
        check=False,
        encoding=encoding,
    )


# --- starting -------------------------------------------------------------------------------------

LOADED = """
import sys
import kldiv
before = set(sys.modules)
from kldiv.cli import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
loaded = {name.partition(".")[0] for name in sys.modules}
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded), file=sys.stderr)
print(*sorted(new), file=sys.stderr)
"""
FRAMEWORKS = {
    "torch",
    "jax",
    "cupy",
    "dask",
    "llvmlite",
    "numba",
    "scipy",
    "matplotlib",
    "safetensors",
}


def test_help_imports_no_framework():
    done = spawn("--help", code=LOADED)
    loaded, new = (set(line.split()) for line in done.stderr.splitlines())
    assert "Commands:" in done.stdout
    assert "click" in new
    assert not loaded & FRAMEWORKS
    assert not new & {"rich", "numpy"}


def test_what_watches_the_imports_sees_them(files):
    done = spawn("compare", "p.npy", "q.npy", "--plot", "x.png", code=LOADED)
    assert {"rich", "matplotlib"} <= set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_install_line_is_said(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from kldiv.cli import main; main()"
    done = spawn("doctor", code=code)
    assert done.returncode == 2
    assert done.stderr == f'kldiv needs {missing}: pip install "kldiv[cli]"\n'


def test_help_and_version_as_others_have_them(command):
    status, out, _ = command("--help")
    assert status == 0
    for name in ("compare", "diagnose", "doctor", "fit", "warmup"):
        assert f"  {name} " in out
    assert "_KLDIV_COMPLETE=bash_source kldiv" in out
    assert command("help") == command("--help")
    assert command("help", "fit") == command("fit", "--help")
    assert command("--version")[:2] == command("-V")[:2] == (0, f"kldiv {kldiv.__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    if shell == "bash" and sys.platform == "win32":
        pytest.skip("no bash")
    code = "from kldiv.cli import main; main()"
    done = spawn(code=code, _KLDIV_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert "_KLDIV_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("kldiv ", 1, {"bench", "compare", "diagnose", "doctor", "fit", "warmup"}),
        ("kldiv compare --from l", 3, {"log-probs", "logits"}),
    ],
)
def test_completion_answers(words, position, expected):
    done = spawn(
        code="from kldiv.cli import main; main()",
        _KLDIV_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(position),
    )
    assert {line.partition(",")[2] for line in done.stdout.split()} == expected


# --- exit codes and streams -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["compare", "p.npy"], 2, "Missing argument 'Q'"),
        (["compare", "p.npy", "q.npy", "--from", "guesses"], 2, "'log-probs'"),
        (["compare", "p.npy", "q.npy", "--top", "-1"], 2, "--top"),
        (["compare", "p.npy", "q.npy", "--smoothing", "0.5"], 2, "--normalize"),
        (["compare", "p.npy", "q.npy", "--smoothing", "0.5", "--from", "probs"], 2, "--normalize"),
        (["compare", "one.npy", "q.npy", "--smoothing", "0.5"], 2, "P holds probabilities"),
        (["compare", "p.npy", "q.npy", "--smoothing", "1", "--from", "logits"], 2, "not to logits"),
        (["compare", "p.npy", "q.npy", "--plot", "x.txt"], 2, ".png"),
        (["compare", "p.npy", "q.npy", "--plot", "none/x.png"], 2, "no such folder"),
        (["compare", "p.npy", "q.npy", "--smoothing", "inf"], 2, "finite"),
        (["compare", "p.npy", "q.npy", "--smoothing", "-1"], 2, "--smoothing"),
        (["nothing"], 2, "nothing"),
        (["compar", "p.npy", "q.npy"], 2, "Did you mean 'compare'?"),
        (["bench", "rum"], 2, "Did you mean 'run'?"),
        (["p.npy", "q.npy", "--from", "count"], 2, "Did you mean 'counts'?"),
        (["p.npy", "q.npy", "--backend", "torhc"], 4, "Did you mean 'torch'?"),
        (["compare", "-", "-"], 2, "cannot both be standard input"),
        (["compare", "p.npy", "q.npy", "--sep", "ab"], 2, "--sep ab: expected one character"),
        (["compare", "p.npy", "q.npy", "--fold"], 2, "--align"),
        (["compare", "p.npy", "q.npy", "--bins", "3"], 2, "--from samples"),
        (["compare", "p.npy", "none.npy"], 4, "none.npy: no such file"),
        (["compare", "p.npy", "q.npy", "--axis", "1"], 4, "--axis 1"),
        (["compare", "p.npy", "q.npy", "--backend", "nothing"], 4, "'nothing'"),
        (["compare", "p.npy", "q.npy", "--device", "cuda:7"], 4, "cuda:7"),
        (["compare", "p.npy", "q.npy", "--kernel", "none"], 4, "'none'"),
        (["compare", "p.npy", "q.npy", "--max-bytes", "8"], 4, "--max-bytes"),
        (["diagnose", "p.npy", "none.npy"], 4, "none.npy: no such file"),
    ],
)
def test_what_cannot_be_done(files, command, arguments, status, said):
    code, out, err = command(*arguments)
    assert code == status
    assert said in err
    assert not out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("say form='logits' or form='probs'", "say --from logits or --from probs"),
        ("normalize=True, smoothing=A adds A", "--normalize --smoothing A adds A"),
        ("`shard_axis`: 0 then; `top`: 1 then", "--shard-axis: 0 then; --top: 1 then"),
        ("smoothing=1.5. Or axis=-1, but", "--smoothing 1.5. Or --axis -1, but"),
        ("checkpoint='a b.state': no", "--checkpoint a b.state: no"),
        ("labels='a b', labels='', sep=';'", "--labels 'a b' --labels '' --sep ';'"),
        ("header=False: or decimal=','", "--no-header: or --decimal ,"),
        ("platform=1 `where` max_bytes=3", "platform=1 `where` max_bytes=3"),
    ],
)
def test_messages_name_the_flags(text, said):
    assert in_flags(text) == said


def test_two_files_alone_are_compared(files, command):
    assert command("p.npy", "q.npy") == command("compare", "p.npy", "q.npy")
    assert command("Normal(0, 1)", "Normal(1, 1)")[0] == 0
    assert command("--json", "p.npy", "q.npy") == command("compare", "p.npy", "q.npy", "--json")
    assert command("p.npy")[2].endswith("Error: p.npy: two files are compared: kldiv P Q\n")
    assert "Nor is there a file 'none'" in command("none", "q.npy")[2]


SLOW = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
from kldiv.cli import interrupts, main
from kldiv import streaming
interrupts._PATIENCE = 0.1
def compare(*given, **options):
    thread = threading.Thread(target=time.sleep, args=(60,))
    thread.start()
    print("ready", flush=True)
    try:
        thread.join()
    finally:
        thread.join()  # as a pool of threads that compile does
streaming.compare = compare
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs -n 0: workers get signals")
def test_an_interrupt_waits_for_no_thread(files):
    command = [sys.executable, "-c", SLOW, "p.npy", "q.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == b"Interrupted\n"


def test_an_interrupt(files, command, monkeypatch):
    def interrupted(p, q, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "compare", interrupted)
    assert command("compare", "p.npy", "q.npy") == (130, "", "Interrupted\n")


def test_a_mistake_of_our_own_is_one_line(files, command, monkeypatch):
    def mistaken(p, q, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(streaming, "compare", mistaken)
    with pytest.raises(ZeroDivisionError):
        app(["compare", "p.npy", "q.npy", "--debug"], prog_name="kldiv")
    status, out, err = command("compare", "p.npy", "q.npy")
    assert (status, out) == (70, "")
    assert err.startswith("Error: kldiv itself failed (ZeroDivisionError:). The same command with")
    assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close in another way there")
@pytest.mark.parametrize("options", [["--reduction", "none"], ["--json", "--reduction", "none"]])
def test_a_pipe_that_is_closed_early(files, options):
    np.save("many.npy", np.full((20_000, 2), 0.5))
    command = [sys.executable, "-m", "kldiv", "compare", "many.npy", "many.npy", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        status = process.wait()
    assert errors == b""
    assert status == 0


def test_data_and_messages_do_not_mix(pytestconfig):
    done = spawn("compare", *(pytestconfig.rootpath / each for each in LETTERS), "--json")
    assert done.returncode == 0
    warnings = json.loads(done.stdout)["warnings"]
    assert len(warnings) == 2
    assert done.stderr.splitlines() == [f"note: {each}" for each in warnings]


def test_colours_and_widths_only_where_they_are_wanted(pytestconfig):
    arguments = ["compare", *(pytestconfig.rootpath / each for each in LETTERS)]
    plain = spawn(*arguments, COLUMNS="40")
    coloured = spawn(*arguments, FORCE_COLOR="1", TERM="xterm")
    refused = spawn(*arguments, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert "\x1b[36m" in coloured.stdout
    assert "\x1b[" in coloured.stderr
    assert "\x1b" not in plain.stdout + plain.stderr + refused.stdout + refused.stderr
    assert "D(P‖Q)" in plain.stdout
    assert plain.stdout == spawn(*arguments, COLUMNS="200").stdout, "a pipe has no width"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_the_characters(pytestconfig, encoding):
    arguments = ["compare", *(pytestconfig.rootpath / each for each in reversed(LETTERS))]
    done = spawn(*arguments, encoding=encoding, PYTHONUTF8="0", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "D(P||Q)" in done.stdout
    assert "****" in done.stdout
    assert "D(P||Q) is infinite" in done.stderr
    assert ("\\xfc" in done.stdout) == (encoding == "ascii")  # ü


def test_help_in_ascii():
    for command in ("compare", "diagnose", "doctor", "fit", "warmup"):
        done = spawn(command, "--help", PYTHONUTF8="0", PYTHONIOENCODING="ascii:strict")
        assert done.returncode == 0
        assert done.stdout.isascii()
        assert "\\" not in done.stdout


def test_labels_do_not_steer_the_terminal(files, command):
    (files / "p.csv").write_text("class,n\n\x1b[31ma,1\n[red]b,2\n", encoding="utf-8")
    _, out, _ = command("compare", "p.csv", "p.csv")
    assert "\x1b" not in out
    assert "\\x1b[31ma" in out
    assert "[red]b" in out


# --- progress -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("patience", [-1.0, 1e9])
def test_a_bar_on_a_terminal_after_a_while(files, patience):
    import pty

    code = (
        "import kldiv.streaming.blocks as b, kldiv.cli.progress as p\n"
        f"p._PATIENCE = {patience}; b.BUDGET = 16\n"
        "from kldiv.cli import main; main()"
    )
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", code, "compare", "p.npy", "q.npy"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        status = process.wait()
    os.close(follower)
    os.set_blocking(leader, False)
    try:
        shown = os.read(leader, 1 << 16).decode()
    except OSError:  # nothing was written and the other side is closed
        shown = ""
    os.close(leader)
    assert status == 0
    assert ("Comparing" in shown) == (patience < 0)


def test_no_bar_in_a_pipe(files, command, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setattr(blocks, "BUDGET", 16)
    assert command("compare", "p.npy", "q.npy")[2] == ""
