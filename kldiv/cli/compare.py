"""``kldiv compare``: two files, their divergences, and where these come from."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kldiv.cli.interrupts import keep_state
from kldiv.cli.suggestions import Choice, suggested
from kldiv.cli.tables import TABLES, part_of, picture, reading_of, refuse, table_options
from kldiv.errors import InputError, KLDivError, OptionError, ShapeError

if TYPE_CHECKING:
    from kldiv.streaming import Comparison

_CALL: Final = re.compile(r"\s*[A-Za-z_]\w*\s*\(.*\)\s*", flags=re.DOTALL)
_BEGUN: Final = re.compile(r"\s*[A-Z]\w*\s*\(")
_FOR_FILES: Final = (
    *("form", "normalize", "smoothing", "align", "plot", "axis", "key", "shard_axis"),
    *("checkpoint", "scheduler", "fold", "rebin", "generalized", "bins", "divergences"),
    *("neighbours", "quantization", "next_tokens", "hidden", "weight", "weight_q"),
    *("labels", "values", "sep", "decimal", "encoding", "comment", "na", "header"),
)
_FAR: Final = 0.01  # how far from 1 sums of rounded probabilities are not

EPILOG = (
    """\b
FILES
  .npy, .npz, .csv, .tsv, .txt, .json, .jsonl, .parquet, .arrow, .feather,
  .xlsx, .h5, .safetensors, .pt, text packed as .gz, .bz2, .xz or .zst,
  Zarr stores, and folders or patterns ("run/*.npy") of .npy or .safetensors
  shards in the natural order of their names, one behind the other along
  --shard-axis. - is standard input, and pipes like <(command) are read too.
  file::key picks an array, tensor, column or sheet.
  A table with one column of numbers is one distribution, a text column next to
  it its labels; several columns of numbers are a row per distribution. Columns
  low and high are the edges of bins: histograms of other bins are refused, or
  spread over the common ones with --rebin.

"""
    + TABLES
    + """
\b
WHAT THEY HOLD (--from)
  auto       counts where all numbers are whole, else probs
  probs      taken as they are; --normalize divides them by their sum. Sums far
             from 1 are asked about; --generalized takes them as they are, in
             the generalised divergence, sum of p log(p/q) + q - p
  counts     divided by their total
  log-probs  taken as they are; --normalize subtracts log(sum(exp))
  logits     scores: their softmax, exact at any distance
  samples    raw numbers or categories, column by column: categories are
             counted; numbers go by their nearest neighbours (with an interval
             of 95 %), or by --bins, as more than 100,000 do unless
             --neighbours is said. Columns come in the order of their drift

\b
MATRICES (--reduction)
  Every row gets its own divergences. mean, sum and batchmean (the sum divided
  by the first dimension) make one number of them; none prints all rows.

\b
ALL PAIRS (--pairwise)
  Of any number of files, or of one: a matrix of the divergences of every
  distribution from every other. Rows of a table are distributions, with --axis
  0 its columns. --divergence names one or several, --csv and --json print the
  matrix, --plot draws it with alike distributions beside each other (by SciPy).

\b
OTHER DIVERGENCES (--divergence, of --from logits and of --pairwise)
  kl, js:BETA, skew:ALPHA, jeffreys:W,R, tv, hellinger, chi2, alpha:ORDER and
  renyi:ORDER, from one more read: 1 - tv is how often speculative decoding
  accepts the proposals of Q, as P is the target.

\b
LARGER THAN MEMORY
  .npy, .safetensors, Zarr and shards are read in parts, within some 500 MB:
  once where a row of float64 fits into 8 MiB, else twice. --from auto reads
  files of whole numbers once more. With --checkpoint FILE a run that was
  stopped (Ctrl-C: exit code 130) or killed goes on where it was when the same
  command is given again, to the same digits; the file is removed in the end.
  With --scheduler the workers of a Dask cluster read the files by their paths.

\b
QUANTISED MODELS (--quantization)
  P is the original, Q the quantised model, a row a token: mean, percentiles and
  extremes of D(P||Q), how often both have the same likeliest token, the rate at
  which P accepts tokens drawn from Q, and, of the tokens that follow (integers
  in the file of --next-tokens, negative for none), the change of probability
  and the ratio of perplexities. --plot draws the distribution of D(P||Q).
  P and Q may be base files, which llama-perplexity --kl-divergence-base FILE
  writes, with their next tokens; or hidden states with --hidden --weight FILE.

\b
DISTRIBUTIONS
  Instead of two files, two distributions written out, with the names and
  parameters of kldiv.distributions: Normal(0, 1), Gamma(concentration=2,
  rate=0.5), Dirichlet([1, 2, 3]).

\b
JSON (--json)
  kl_pq, kl_qp, js, jeffreys, generalised, units, bits, reduction, rows,
  classes, contributors, zeros, p, q, library, backend, device, kernel, version,
  warnings, and each --divergence by its name. What is not finite is a string:
  "inf", "-inf" or "nan". With --reduction none, kl_pq, kl_qp, js and jeffreys
  are lists. Samples: columns. With --quantization: quantization, whose numbers
  have a standard_error.

\b
EXAMPLES
  kldiv compare english.csv german.csv
  kldiv compare ratings.csv other.csv --labels rating --align
  kldiv compare letters/*.csv --align --pairwise --divergence js --plot js.png
  kldiv compare january.parquet june.parquet --from samples
  zcat counts.csv.gz | kldiv compare - other.csv
  kldiv compare german.csv english.csv --smoothing 0.5 --plot letters.png
  kldiv compare "Normal(0, 1)" "Laplace(0, 0.8)"
  kldiv compare run.npz::teacher run.npz::student --from logits --backend torch
  kldiv compare t.npy s.npy --from logits --divergence tv --divergence renyi:2
  kldiv compare teacher/ student.zarr --from logits --checkpoint run.state
  kldiv compare f16.kld q4.kld --from logits --quantization --plot tokens.png
"""
)


@click.command("compare", epilog=EPILOG, short_help="Compare the distributions in two files.")
@click.argument("p", type=click.Path())
@click.argument("q", type=click.Path(), required=False)
@click.argument("others", type=click.Path(), nargs=-1)
@click.option(
    "--from",
    "form",
    type=Choice(["auto", "probs", "log-probs", "logits", "counts", "samples"]),
    default="auto",
    show_default=True,
    help="What the files hold.",
)
@click.option("--axis", default=-1, show_default=True, help="The axis that the classes lie on.")
@click.option("--normalize", is_flag=True, help="Divide each distribution by its sum.")
@click.option("--generalized", is_flag=True, help="Take sums that are not 1 as they are.")
@click.option(
    "--smoothing",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="A",
    help="Add A to every count or probability, then normalise.",
)
@click.option("--align", is_flag=True, help="Match classes by label; one file may lack some.")
@click.option(
    "--fold/--no-fold", default=None, help="Match labels whatever their case and blanks, or not."
)
@click.option("--rebin", is_flag=True, help="Spread histograms over the edges of both.")
@click.option(
    "--bins",
    type=click.IntRange(min=2),
    metavar="N",
    help="For samples: N bins with equal shares of all numbers.",
)
@click.option(
    "--neighbours",
    is_flag=True,
    help="For samples: by nearest neighbours, however many numbers there are.",
)
@table_options
@click.option(
    "--reduction",
    type=Choice(["mean", "sum", "batchmean", "none"]),
    default="mean",
    show_default=True,
    help="What to make of the divergences of several rows.",
)
@click.option(
    "--divergence",
    "divergences",
    multiple=True,
    metavar="NAME",
    help="Another divergence of logits, or of pairs; may be given several times.",
)
@click.option(
    "--pairwise", is_flag=True, help="A matrix of all pairs of the distributions in the files."
)
@click.option("--backend", metavar="NAME", help="The library that computes: numpy, torch, jax, ...")
@click.option("--device", metavar="NAME", help="The backend's device, such as cuda:0.")
@click.option("--kernel", metavar="NAME", help="The backend's kernel, such as pure.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="How many contributors and rows to show.",
)
@click.option(
    "--shard-axis",
    default=0,
    show_default=True,
    metavar="N",
    help="The axis along which the files of a folder follow one another.",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Keep the state in FILE, and go on from there.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
@click.option(
    "--quantization", is_flag=True, help="Report on Q as a quantised language model beside P."
)
@click.option(
    "--next-tokens", metavar="FILE", help="For that: the token that follows each row in the text."
)
@click.option("--hidden", is_flag=True, help="P and Q are hidden states before a linear layer.")
@click.option("--weight", metavar="FILE", help="The layer's weight, a row for each class.")
@click.option("--weight-q", metavar="FILE", help="Q's weight, where it is another.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Of pairs: print CSV.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Draw the contributions, pairs or columns to a .png, .svg or .pdf.",
)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Compare the distributions P and Q in two files, or written out.

    Prints the divergence in both directions and the Jensen-Shannon divergence, which classes
    contribute the most, and the library and kernel that computed it.
    """
    # Imported here, as these bring NumPy and rich.
    import numpy as np  # noqa: PLC0415

    import kldiv  # noqa: PLC0415

    named = {name: options.pop(name) for name in ("backend", "device", "kernel")}
    settings = {name: value for name, value in named.items() if value is not None}
    with np.errstate(all="ignore"), kldiv.config_context(**settings):
        for name in ("labels", "values", "divergences"):
            options[name] = options[name] or None
        others = options.pop("others")
        if options.pop("pairwise"):
            from kldiv.cli import pairs  # noqa: PLC0415

            options["reading"] = reading_of(options)
            files = (options.pop("p"), options.pop("q"), *others)
            pairs.show(options, [each for each in files if each is not None])
            return
        _check_two(ctx, options, others)
        if _written_out(options):
            from kldiv.cli import distribution_comparison  # noqa: PLC0415

            distribution_comparison.show(options["p"], options["q"], as_json=options["as_json"])
            return
        _check_streams(options)
        options["reading"] = reading_of(options)
        bins, neighbours = options.pop("bins"), options.pop("neighbours")
        if options["form"] == "samples":
            from kldiv.cli import drift  # noqa: PLC0415

            if neighbours and bins:
                raise click.UsageError("--bins and --neighbours: one of them, not both")
            drift.show(options, bins, neighbours=neighbours)
        elif bins is not None or neighbours:
            option = "--bins" if bins is not None else "--neighbours"
            raise click.UsageError(f"{option} is for samples: say --from samples")
        else:
            _compare_files(**options)


def _check_two(ctx: click.Context, options: dict[str, Any], others: tuple[str, ...]) -> None:
    """Refuse anything but two files."""
    if options["q"] is None:
        raise click.MissingParameter(ctx=ctx, param_hint="'Q'", param_type="argument")
    if others:
        extra = "arguments" if len(others) > 1 else "argument"
        raise click.UsageError(
            f"Got unexpected extra {extra} ({' '.join(others)}): two files are compared; --pairwise"
            " compares all pairs of more",
            ctx,
        )
    if options.pop("as_csv"):
        raise click.UsageError("--csv is for matrices: say --pairwise", ctx)


def _check_streams(options: dict[str, Any]) -> None:
    """Refuse options that standard input cannot serve, or only once."""
    used = [options[name].partition("::")[0] == "-" for name in ("p", "q")]
    if all(used):
        raise click.UsageError("P and Q cannot both be standard input (-): name a file for one")
    if any(used) and (options["checkpoint"] or options["scheduler"]):
        raise click.UsageError("--checkpoint and --scheduler need files, not standard input (-)")


def _multiply(options: dict[str, Any]) -> None:
    """Put the logits of a layer in the place of hidden states, where P and Q are those."""
    hidden, weight, weight_q = (options.pop(name) for name in ("hidden", "weight", "weight_q"))
    if not hidden:
        if weight or weight_q:
            raise click.UsageError("--weight is for hidden states: say --hidden too")
        return
    if weight is None:
        raise click.UsageError("--hidden needs the layer's weight: --weight FILE")
    from kldiv.readers import linear_logits, open_table  # noqa: PLC0415 - see above

    for name, of in (("p", weight), ("q", weight_q or weight)):
        part, along = part_of(options, name), options["shard_axis"]
        options[name] = linear_logits(open_table(options[name], shard_axis=along, **part), of)


def _compare_files(*, as_json: bool, plot: str | None, generalized: bool, **options: Any) -> None:
    from kldiv import streaming  # noqa: PLC0415 - see above
    from kldiv.cli import report  # noqa: PLC0415
    from kldiv.cli.flags import in_flags  # noqa: PLC0415
    from kldiv.cli.progress import Progress  # noqa: PLC0415

    drawn = picture("plot", "Plot", plot)
    _multiply(options)
    if options["checkpoint"]:
        keep_state()
    with Progress() as progress:
        try:
            found = streaming.compare(**options, progress=progress.reach)
        except OptionError as error:
            raise click.UsageError(suggested(in_flags(str(error)))) from error
        except ShapeError as error:
            text = f"{error}. Two samples, raw numbers or categories: --from samples"
            raise KLDivError(text) from error
        except streaming.Interrupted as stopped:
            raise KeyboardInterrupt(
                f"after {stopped.share:.0%}, which {stopped.checkpoint} keeps. To go on, give the"
                " same command again"
            ) from None
    if found.undefined and found.reduction != "none":
        raise InputError(". ".join(found.undefined))
    if not generalized:
        _check_sums(found)
    if drawn is not None:
        drawn.draw(found)
    report.show(found, as_json=as_json)


def _check_sums(found: Comparison) -> None:
    """Ask where sums are so far from 1 that the numbers are no probabilities."""
    for side in (found.p, found.q):
        if _FAR < abs(side.furthest - 1.0) < math.inf:  # of an infinite number that is said
            whose = side.name if side.form == "probs" else f"exp({side.name})"
            if found.classes == 1 and len(found.shape) == 1:
                raise InputError(
                    f"{whose} has {found.count:,} rows of one class each. --axis 0 takes the column"
                    " as one distribution"
                )
            rows = f"{side.off:,} of {found.count:,} rows of {whose} do" if found.shape else whose
            verb = "not sum to 1 but to as much as" if found.shape else "sums to"
            mend = "" if side.form == "probs" else "--from logits takes them as scores; "
            tail = "" if found.shape else ", not to 1"
            mend += "file::column takes one column alone; " if len(found.shape) == 1 else ""
            raise InputError(
                f"{rows} {verb} {side.furthest:.6g}{tail}. --normalize divides each distribution by"
                f" its sum; {mend}--generalized takes the numbers as they are, in the generalised"
                " divergence"
            )


def _written_out(options: dict[str, Any]) -> bool:
    """Return whether P and Q are distributions like ``Normal(0, 1)`` rather than files."""
    p, q = options["p"], options["q"]
    # A file may have any name, and one that is there is meant.
    written = [_CALL.fullmatch(text) is not None and not Path(text).exists() for text in (p, q)]
    begun = [text for text in (p, q) if _BEGUN.match(text) and not Path(text).exists()]
    half = next((text for text in begun if text.count("(") != text.count(")")), None)
    if half is not None:
        raise click.UsageError(f"{half}: a bracket is opened and not closed, or the reverse")
    if any(written) and not all(written):
        raise click.UsageError(
            f"{p} and {q}: one is a distribution, the other a file; for data and a distribution see"
            " kldiv fit"
        )
    if any(written):
        refuse(options, _FOR_FILES, "for files, not for distributions")
    return any(written)
