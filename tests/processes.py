"""Programs in an interpreter of their own, and ranks of a process group."""

from __future__ import annotations

import os
import subprocess
import sys


def python(*arguments, cwd=None, status=0, **environment):
    """Run Python with these arguments until it exits as it must; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def ranks(work, size, folder):
    """Call work(rank, size, folder) in each process of a gloo group, and wait for all."""
    import torch

    torch.multiprocessing.spawn(_rank, (size, str(folder), work), nprocs=size)


def _rank(rank, size, folder, work):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meet = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    work(rank, size, folder)
    dist.barrier()  # a rank that leaves first ends the others' connections
    # Not by the interpreter's own end: there a thread of gloo's that lets go of a tensor asks for
    # the interpreter's lock and aborts the process (github.com/pytorch/pytorch/pull/179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
