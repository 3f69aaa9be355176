"""The divergence of logits that no single process holds, by the workers of a Dask cluster.

    python examples/dask_cluster.py --rows 2000 --classes 50000
    python examples/dask_cluster.py --scheduler tcp://127.0.0.1:8786

Rows and classes lie in chunks.  Each chunk is read once, for a state of a few numbers per row; the
states are merged in a tree.  Without --scheduler a cluster of two workers is started here.
"""

from __future__ import annotations

import argparse
import sys
import time

try:
    import dask
    import dask.array as da
    import numpy as np
    from dask.distributed import Client, LocalCluster

    import kldiv
except ImportError as error:
    sys.exit(f'{error.name} is not installed; pip install "kldiv[dask]" distributed')

# Dask's workers give every temporary back to the system, which makes kldiv four times slower.
MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**26, "MALLOC_MMAP_THRESHOLD_": 2**25, "KLDIV_NUM_THREADS": 1}


def logits(rows: int, classes: int, seed: int) -> da.Array:
    """Return logits in chunks of rows and of classes; the workers make them."""
    return da.random.default_rng(seed).normal(size=(rows, classes), chunks=(500, 10_000))


def main(arguments: list[str] | None = None) -> int:
    """Compare one estimate on the cluster with the same in one process, for a few rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scheduler", help="address of a cluster that is running already")
    options = parser.parse_args(arguments)

    teacher = logits(options.rows, options.classes, seed=1)
    student = teacher + 1e-3 * logits(options.rows, options.classes, seed=2)
    loss = kldiv.kl_div_with_logits(student, teacher, reduction="none")  # nothing is computed yet

    cluster = None
    if options.scheduler is None:
        dask.config.set({"distributed.nanny.pre-spawn-environ": MEMORY})
        cluster = LocalCluster(
            n_workers=options.workers, threads_per_worker=1, dashboard_address=":0"
        )
    try:
        with Client(options.scheduler or cluster) as client:
            start = time.perf_counter()
            values, mean = client.gather(client.compute([loss, loss.mean()]))
            seconds = time.perf_counter() - start
            few = client.gather(client.compute([student[:3], teacher[:3]]))
    except KeyboardInterrupt:
        return 130
    finally:
        if cluster is not None:
            cluster.close()
    megabytes = (student.nbytes + teacher.nbytes) / 2**20
    print(f"{mean:.6e} nats a row on average, {megabytes:.0f} MiB of logits, {seconds:.1f} s")
    here = kldiv.kl_div_with_logits(*few, reduction="none")
    agree = bool(np.allclose(values[:3], here, rtol=2e-15, atol=0))
    print("The first rows agree with one process." if agree else "They DISAGREE.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
