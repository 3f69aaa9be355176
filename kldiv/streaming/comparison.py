"""`compare`: a whole comparison in one call."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from kldiv.readers.reading import PLAIN
from kldiv.streaming.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from kldiv.readers import Reading
    from kldiv.streaming._types import Form, Reduction
    from kldiv.streaming.results import Comparison


class Interrupted(KeyboardInterrupt):
    """
    Ctrl-C, after which the same call goes on.

    Attributes
    ----------
    share : float
        The part of the steps that is done.
    checkpoint : str
        The file that keeps it.
    """

    def __init__(self, share: float, checkpoint: str) -> None:
        super().__init__(f"after {share:.0%}, which {checkpoint} keeps. The same call goes on")
        self.share = share
        self.checkpoint = checkpoint


def compare(  # noqa: PLR0913 - public options, each by name
    p: Any,
    q: Any,
    *,
    form: Form = "probs",
    axis: int = -1,
    normalize: bool = False,
    smoothing: float = 0.0,
    align: bool = False,
    fold: bool | None = None,
    rebin: bool = False,
    reduction: Reduction = "mean",
    top: int = 10,
    key: str | None = None,
    max_bytes: int | None = None,
    shard_axis: int = 0,
    reading: Reading = PLAIN,
    divergences: Any = None,
    quantization: bool = False,
    next_tokens: Any = None,
    memory: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """
    Compare two arrays of distributions that need not fit into memory.

    Each row, a distribution along ``axis``, gets D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence
    in nats, in float64; so does each class its part of them.  The arrays are read in parts by a few
    threads: once where a row of float64 fits into a 64th of ``memory``, else twice.  The settings
    that hold choose who computes, as for every function of kldiv.

    Parameters
    ----------
    p : array, path or Table
        The distributions that are averaged over, the teacher's.  A NumPy array or memory map; the
        path of a ``.npy``, ``.npz``, ``.safetensors``, ``.csv`` or ``.tsv`` file (``file::key``
        picks an array of several), of a Zarr store, or of a folder of shards; a pattern of shards
        like ``run/part-*.npy``; or a table of `kldiv.readers`, which may bring labels.
    q : array, path or Table
        The others, of the same shape.
    form : {"probs", "log-probs", "logits", "counts", "auto"}, default "probs"
        The form of the numbers of both.  "probs" and "log-probs" are taken as they are: where they
        do not sum to 1, D is the generalised divergence Σ p·log(p/q) + q − p, never negative.
        "counts" are divided by their sum, "logits" are exact at any distance.  "auto" reads an
        array of whole numbers once more, and takes it for counts.
    axis : int, default -1
        The axis of the classes.
    normalize : bool, default False
        Whether to divide each distribution by its sum; of "log-probs" this is a log-softmax.
    smoothing : float, default 0.0
        Added to every count or probability before they are normalised.
    align : bool, default False
        Whether to match classes and rows by their labels; classes that one side lacks are empty.
    fold : bool, optional
        Whether labels match that differ by case, blanks, Unicode form or the spelling of a number
        ("5" and "5.0"). By default an error asks where this would make a difference.
    rebin : bool, default False
        Whether histograms of different bins are both spread, evenly within each bin, over the
        common edges; by default they are refused.
    reduction : {"mean", "sum", "batchmean", "none"}, default "mean"
        The reduction over rows; "none" keeps all values, beside their mean.
    top : int, default 10
        The number of rows and classes of largest divergence to name.
    key : str, optional
        The array to take from files without ``::key``.
    max_bytes : int, optional
        The largest array to accept from a file; see `kldiv.readers.open_table`.
    shard_axis : int, default 0
        The axis along which shards follow one another.
    reading : kldiv.readers.Reading, optional
        How to read tables, where their files leave it open.
    divergences : str, sequence of str, or mapping, optional
        Other divergences of logits, from one more read: names such as "tv", "hellinger", "chi2",
        "alpha:0.5", "renyi:2", "skew:0.1", "js:0.25", "jeffreys:1,0.5"; or losses of
        kldiv, or records of `kldiv.divergences`, by a name for each.
    quantization : bool, default False
        Whether to report on Q as a quantised language model beside P, of "logits": percentiles of
        D(P‖Q), the share of rows of the same likeliest class, the rate of acceptance, and, of the
        tokens that follow, the change of their probability and the ratio of perplexities.
    next_tokens : array or path, optional
        For that: the class that follows each row in the text, negative where none does. The base
        files of llama.cpp have their own.
    memory : int, optional
        About how many bytes to use, by default 512 MiB.  The pages of a memory map come on top,
        until the system takes them back.
    checkpoint : str or path-like, optional
        A file that keeps the state, every half minute and after Ctrl-C.  The same call goes on from
        it, to the same bits; it is removed in the end.  A path is known again by its size and time,
        an array by a digest of its numbers, which takes one more read.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers read P and Q by their paths.
    progress : callable, optional
        Called with the number of steps done and of all steps.

    Returns
    -------
    Comparison
        ``kl_pq``, ``kl_qp`` and ``js`` over all rows, ``mean`` for short; ``quantization``, a
        `kldiv.metrics.QuantizationReport`, where that was asked for; the ``worst`` rows, the
        largest ``contributions`` of classes, the zeros, ``warnings``, the other ``divergences`` by
        name, and ``p`` and ``q`` as read.

    Raises
    ------
    InputError
        A file cannot be read, has negative probabilities, or labels that differ; or a checkpoint of
        another comparison.
    ShapeError
        Shapes differ, or there is no such axis or no number.
    DTypeError, LibraryError
        An array that is not real, or not NumPy's.
    OptionError
        An option with a value that it does not take.
    BackendError
        The backend that is set cannot compute this.
    Interrupted
        Ctrl-C, where a checkpoint keeps the state; a `KeyboardInterrupt`.

    See Also
    --------
    Run : The same, a step at a time.
    kldiv.kl_div_with_logits : Of arrays in memory, differentiable.
    kldiv.KLState : Parts that come one after another.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from kldiv import streaming
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> teacher = np.sin(np.arange(60_000.0)).reshape(20, -1)
    >>> np.save(folder / "teacher.npy", teacher)
    >>> np.save(folder / "student.npy", np.round(teacher, 2))
    >>> found = streaming.compare(folder / "teacher.npy", folder / "student.npy", form="logits")
    >>> print(f"{found.mean:.3e}, at most {found.kl_pq.max:.3e} in row {found.worst[0].label}")
    4.043e-06, at most 4.091e-06 in row 9
    >>> other = np.round(teacher, 1)
    >>> found = streaming.compare(teacher, other, form="logits", divergences=["tv", "renyi:0.5"])
    >>> print({name: round(each.mean, 6) for name, each in found.divergences.items()})
    {'tv': 0.011447, 'renyi:0.5': 0.000188}
    """
    run = Run(
        p,
        q,
        form=form,
        axis=axis,
        normalize=normalize,
        smoothing=smoothing,
        align=align,
        fold=fold,
        rebin=rebin,
        reduction=reduction,
        top=top,
        key=key,
        max_bytes=max_bytes,
        shard_axis=shard_axis,
        reading=reading,
        divergences=divergences,
        quantization=quantization,
        next_tokens=next_tokens,
        memory=memory,
        checkpoint=checkpoint,
        scheduler=scheduler,
    )
    with closing(iter(run)) as steps:
        try:
            for done, number in steps:
                if progress is not None:
                    progress(done, number)
                run.save_when_due()
        except KeyboardInterrupt:
            if checkpoint is None:
                raise
            run.save()
            raise Interrupted(run.done / run.steps, str(checkpoint)) from None
    return run.result()
