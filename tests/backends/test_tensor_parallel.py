"""Logits spread over ranks of a process group or a mesh: the loss and gradients of the whole."""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import processes
import pytest
import spread_rows
from logit_families import families

import kldiv
from kldiv.errors import LibraryError

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402
from torch.distributed.tensor.parallel import loss_parallel  # noqa: E402

from kldiv.formulas import ranks as collectives  # noqa: E402
from kldiv.formulas.state import Rows, State  # noqa: E402

LOSSES = {"kl": kldiv.kl_div_with_logits, "js": kldiv.js_div_with_logits}
EVERY = {
    **LOSSES,
    "renyi": partial(kldiv.renyi_div_with_logits, alpha=0.6),
    "cross": kldiv.cross_entropy_with_logits,
}
"""With two whose sums are not added up."""
CLASSES = 64
SHARDS = {2: (44, 20), 3: (33, 0, 31)}
"""How many classes each rank has: uneven, and none on one of three."""
STATE, ROWS = len(State._fields), len(Rows._fields)


def logits(dtype, *, masked_rows=False):
    """Rows of every family; with the rows that are NaN where a mask is to drop them."""
    pairs = list(families(CLASSES).values())
    s, t = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    if masked_rows:
        s[0], t[1], s[2, 3] = np.nan, -np.inf, np.inf
    return [torch.tensor(array, dtype=dtype) for array in (s, t)]


ROWS_OF_ALL = len(families(CLASSES))
KEEP = torch.arange(ROWS_OF_ALL) > 2
SOME = torch.arange(ROWS_OF_ALL) > 1
WEIGHTS = torch.clip(torch.arange(ROWS_OF_ALL) - 3.0, 0.0)
"""0 for a row that is NaN, and for one that is not."""
TEMPERATURES = 0.5 + torch.arange(ROWS_OF_ALL) / 20


class Case(NamedTuple):
    """One call: a loss, a dtype, its options."""

    loss: str
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    axis: int = -1
    beyond: bool = False
    """Whether the group counts as too large for one gather."""

    def arrays(self):
        pair = logits(self.dtype, masked_rows="where" in self.options)
        return [array.moveaxis(-1, self.axis) for array in pair]

    def run(self, s, t, **spread):
        """Return the loss and all gradients."""
        s, t = (array.clone().requires_grad_() for array in (s, t))
        options = dict(self.options)
        learnt = []
        for name in ("temperature", "row_weight"):
            if isinstance(options.get(name), torch.Tensor):
                learnt.append(options[name].to(self.dtype).requires_grad_())
                options[name] = learnt[-1]
        loss = EVERY[self.loss](s, t, axis=self.axis, **options, **spread)
        scale = torch.arange(1.0, loss.numel() + 1).reshape(loss.shape)
        (loss * scale).sum().backward()
        return [loss.detach(), s.grad, t.grad, *(array.grad for array in learnt)]


CASES = {
    f"{loss} {name}": Case(loss, **settings)
    for loss in LOSSES
    for name, settings in {
        "rows": {"options": {"reduction": "none"}},
        "rows in float32": {"dtype": torch.float32, "options": {"reduction": "none"}},
        "temperature": {"options": {"reduction": "none", "temperature": 1.7}},
        "temperatures": {"options": {"reduction": "none", "temperature": TEMPERATURES}},
        "where, mean": {"options": {"where": KEEP}},
        "where, batchmean": {"options": {"where": KEEP, "reduction": "batchmean"}},
        "weights": {"options": {"where": SOME, "row_weight": WEIGHTS, "normalizer": 9.0}},
        "first axis": {"options": {"reduction": "none"}, "axis": 0},
        "beyond": {"options": {"reduction": "none"}, "beyond": True},
        "beyond, temperatures": {
            "options": {"reduction": "none", "temperature": TEMPERATURES},
            "beyond": True,
        },
    }.items()
}
CASES |= {
    f"{loss}{', beyond' * beyond}": Case(loss, options={"reduction": "none"}, beyond=beyond)
    for loss in ("renyi", "cross")
    for beyond in (False, True)
}
MESH_CASES = {
    f"{loss} {name}": Case(loss, options=options)
    for loss in LOSSES
    for name, options in {
        "mean": {},
        "none": {"reduction": "none"},
        "weights": {"where": SOME, "row_weight": WEIGHTS, "normalizer": 9.0},
        "sum": {"reduction": "sum"},
        "where, mean": {"where": KEEP},
        "where, batchmean": {"where": KEEP, "reduction": "batchmean", "temperature": 0.7},
    }.items()
}


# ---- what each rank does -------------------------------------------------------------------------


def part(size, rank):
    start, stop = list(pairwise(accumulate(SHARDS[size], initial=0)))[rank]
    return slice(start, stop)


class Traffic:
    """Counts what a rank sends, and how often."""

    def __init__(self, patch):
        self.sent: list[tuple[str, int]] = []
        for name, argument in (("all_gather", 1), ("all_reduce", 0), ("all_to_all_single", 1)):
            patch.setattr(dist, name, self.counting(name, getattr(dist, name), argument))

    def counting(self, name, collective, argument):
        def counted(*args, **kwargs):
            self.sent.append((name, args[argument].nbytes))
            return collective(*args, **kwargs)

        return counted


def on_a_group(size, rank, group, patch):
    found = {}
    for name, case in CASES.items():
        mine = [array.movedim(case.axis, -1)[:, part(size, rank)] for array in case.arrays()]
        mine = [array.movedim(-1, case.axis) for array in mine]
        with patch.context() as inner:
            if case.beyond:
                inner.setattr(collectives, "GATHERED", 1)
            found[name] = case.run(*mine, group=group)
    return found


def traffic(size, rank, group, patch):
    found = {}
    for loss, function in LOSSES.items():
        s, t = (array[:, part(size, rank)].requires_grad_() for array in logits(torch.float32))
        for limit in (16, 1):
            with patch.context() as inner:
                inner.setattr(collectives, "GATHERED", limit)
                counter = Traffic(inner)
                with CommDebugMode() as forth:
                    value = function(s, t, group=group)
                with CommDebugMode() as back:
                    value.backward()
                counts = [
                    {str(op): number for op, number in mode.get_comm_counts().items()}
                    for mode in (forth, back)
                ]
                found[loss, limit] = [*counts, counter.sent]
    return found


def on_a_mesh(size, rank, group, patch):
    found = {}
    meshes = {"1": init_device_mesh("cpu", (size,)), "2": init_device_mesh("cpu", (1, size))}
    layouts = {
        "classes": ("1", [Shard(1)]),
        "rows": ("1", [Shard(0)]),
        "whole": ("1", [Replicate()]),
        "both": ("2", [Shard(0), Shard(1)]),
    }
    for layout, (mesh, placements) in layouts.items():
        for name, case in MESH_CASES.items():
            s, t = (
                distribute_tensor(array, meshes[mesh], placements).requires_grad_()
                for array in case.arrays()
            )
            options = dict(case.options)
            if layout == "rows" and "where" in options:  # a mask that is spread as well
                options["where"] = distribute_tensor(options["where"], meshes[mesh], [Shard(0)])
            loss = LOSSES[case.loss](s, t, **options)
            loss.sum().backward()
            where = [str(array.placements) for array in (loss, s.grad, t.grad)]
            whole = [array.full_tensor().detach() for array in (loss, s.grad, t.grad)]
            found[layout, name] = where, whole
    s, t = (distribute_tensor(a, meshes["1"], [Shard(1)]) for a in logits(torch.float64))
    rows = distribute_tensor(logits(torch.float64)[1], meshes["1"], [Shard(0)])
    case = Case("kl")

    def parallel(*, failing):
        with loss_parallel():
            if failing:
                raise RuntimeError
            return [array.full_tensor() for array in case.run(s, t)]

    found["loss_parallel"] = parallel(failing=False)
    with pytest.raises(RuntimeError):
        parallel(failing=True)
    found["after an exception"] = [array.full_tensor() for array in case.run(s, t)]
    loss = kldiv.kl_div_with_logits
    refused = {
        "a plain one": lambda: loss(s, logits(torch.float64)[1]),
        "placements": lambda: loss(s, rows),
        "a group": lambda: loss(s, t, group=group),
    }
    partial_sums = torch.distributed.tensor.DTensor.from_local(
        logits(torch.float64)[0], meshes["1"], [Partial()]
    )
    twice = distribute_tensor(logits(torch.float64)[0], meshes["2"], [Shard(1), Shard(1)])
    refused["partial"] = lambda: loss(partial_sums, partial_sums)
    refused["twice"] = lambda: loss(twice, twice)
    for name, call in refused.items():
        with pytest.raises(LibraryError) as error:
            call()
        found["refused", name] = str(error.value)
    return found


def of_labels(spread, part=slice(None), kind=torch.float64):
    """Losses of labels and sparse teachers, with their gradients."""
    found = {}
    s, labels, teacher, heat, beta = spread_rows.rows()
    whole = [torch.tensor(array, dtype=kind) for array in (teacher.rest, beta)]
    indices = map(torch.tensor, (labels, teacher.indices))
    for name, loss in spread_rows.losses(*indices, *whole).items():
        arrays = [torch.tensor(array, dtype=kind) for array in (s, heat, teacher.log_probs)]
        if callable(spread):
            arrays[0] = spread(arrays[0])
        own = {"group": spread} if isinstance(spread, dist.ProcessGroup) else {}
        leaves = [arrays[0][:, part].detach(), *arrays[1:]]
        value = loss(*(array.requires_grad_() for array in leaves), **own)
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        found[name] = [
            array.full_tensor().detach() if hasattr(array, "full_tensor") else array.detach()
            for array in (value, *slopes)
            if array is not None
        ]
    return found


def labels_and_teachers(size, rank, group, patch):
    mesh = init_device_mesh("cpu", (size,))
    return {
        "group": of_labels(group, part(size, rank)),
        "float32": of_labels(group, part(size, rank), torch.float32),
        "mesh": of_labels(lambda array: distribute_tensor(array, mesh, [Shard(1)])),
    }


def work(rank, size, folder):
    with pytest.MonkeyPatch.context() as patch:
        found = {
            step.__name__: step(size, rank, dist.group.WORLD, patch)
            for step in (
                on_a_group,
                traffic,
                on_a_mesh,
                labels_and_teachers,
            )
        }
    torch.save(found, f"{folder}/{rank}")


# ---- what must come out --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def ranks(request, tmp_path_factory):
    """What each rank of two, and of three, found; they run once."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.ranks(work, request.param, folder)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(request.param)]


def whole_of(results, axis=-1):
    """Return loss and gradients of all classes, given those of every rank."""
    for result in results[1:]:  # every rank has the same loss, to the last bit
        torch.testing.assert_close(result[0], results[0][0], rtol=0, atol=0, equal_nan=True)
        for mine, theirs in zip(result[3:], results[0][3:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    gradients = (torch.cat([result[side] for result in results], axis) for side in (1, 2))
    return [results[0][0], *gradients, *results[0][3:]]


def check(found, wanted, tolerance):
    """Compare a loss relative to each row, gradients to a row's L1 norm."""
    floor = torch.finfo(found[0].dtype).smallest_normal
    value, *gradients = (array.double() for array in found)
    expected, *slopes = (array.double() for array in wanted)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=floor, equal_nan=True)
    for index, (gradient, slope) in enumerate(zip(gradients, slopes, strict=True)):
        if index == 2:  # in T terms of a logit that is 1e9 lower cancel from 1e12 to 3e5
            tolerance *= 100
        gradient, slope = (torch.atleast_2d(array) for array in (gradient, slope))  # noqa: PLW2901
        assert torch.equal(gradient.isnan(), slope.isnan())
        error = (gradient - slope).nan_to_num().abs().sum(-1)
        size = slope.nan_to_num().abs().sum(-1)
        assert (error <= tolerance * size + CLASSES * floor).all()


@pytest.mark.parametrize("name", CASES)
def test_shards_give_the_loss_and_gradients_of_the_whole(ranks, name):
    case = CASES[name]
    found = whole_of([rank["on_a_group"][name] for rank in ranks], case.axis)
    arrays = [array.double() for array in case.arrays()]
    wanted = case._replace(dtype=torch.float64).run(*arrays)
    if case.axis == 0:
        found, wanted = (
            [array.movedim(0, -1) if array.ndim == 2 else array for array in arrays]
            for arrays in (found, wanted)
        )
    check(found, wanted, 1e-6 if case.dtype == torch.float32 else 1e-12)
    assert found[0].dtype == case.dtype


@pytest.mark.parametrize("how", ["group", "float32", "mesh"])
def test_labels_and_sparse_teachers_of_the_whole(ranks, how):
    found = [rank["labels_and_teachers"][how] for rank in ranks]
    tolerance = 1e-6 if how == "float32" else 2e-15
    for name, wanted in of_labels(None).items():
        for mine in found:
            value, slope, *others = mine[name]
            if how != "mesh":
                slope = torch.cat([each[name][1] for each in found], -1)
            for array, expected in zip((value, slope, *others), wanted, strict=True):
                size = expected.nan_to_num(posinf=0.0, neginf=0.0).abs().max()
                torch.testing.assert_close(
                    array.double(),
                    expected,
                    rtol=tolerance,
                    atol=tolerance * float(size),
                    equal_nan=True,
                )


def test_traffic_is_a_few_numbers_a_row(ranks):
    size = len(ranks)
    share = -(-ROWS_OF_ALL // size) * size
    for rank in ranks:
        found = rank["traffic"]
        for loss, states in (("kl", 1), ("js", 2)):
            sums = [("all_reduce", 4 * 3 * ROWS_OF_ALL)] if loss == "js" else []
            forth, back, sent = found[loss, 16]
            assert sum(forth.values()) == states
            assert back == {}
            assert sent == [("all_gather", 4 * states * STATE * ROWS_OF_ALL), *sums]
            forth, back, sent = found[loss, 1]
            assert sum(forth.values()) == 1 + states
            assert back == {}
            assert sent == [
                ("all_to_all_single", 4 * states * STATE * share),
                ("all_gather", 4 * states * ROWS * share // size),
                *sums,
            ]


@pytest.mark.parametrize("layout", ["classes", "rows", "whole", "both"])
@pytest.mark.parametrize("name", MESH_CASES)
def test_a_dtensor_says_itself_how_it_is_spread(ranks, layout, name):
    case = MESH_CASES[name]
    s, t = (array.requires_grad_() for array in case.arrays())
    loss = LOSSES[case.loss](s, t, **case.options)
    loss.sum().backward()
    for rank in ranks:
        (of_loss, *of_gradients), found = rank["on_a_mesh"][layout, name]
        check(found, [loss.detach(), s.grad, t.grad], 1e-12)
        placed = {
            "classes": "(Shard(dim=1),)",
            "rows": "(Shard(dim=0),)",
            "whole": "(Replicate(),)",
            "both": "(Shard(dim=0), Shard(dim=1))",
        }[layout]
        assert of_gradients == [placed, placed]
        kept = placed.replace("Shard(dim=1)", "Replicate()")
        reduced = "(Replicate(), Replicate())" if layout == "both" else "(Replicate(),)"
        assert of_loss == (kept if case.options.get("reduction") == "none" else reduced)


def test_torchs_loss_parallel_changes_nothing(ranks):
    case = Case("kl")
    wanted = case.run(*logits(torch.float64))
    for rank in ranks:
        check(rank["on_a_mesh"]["loss_parallel"], wanted, 1e-12)
        check(rank["on_a_mesh"]["after an exception"], wanted, 1e-12)


def test_what_does_not_fit_is_refused_with_the_mend(ranks):
    for rank in ranks:
        found = {key[1]: text for key, text in rank["on_a_mesh"].items() if key[0] == "refused"}
        assert "make both DTensors" in found["a plain one"]
        assert "target.redistribute(" in found["placements"]
        assert "leave group= out" in found["a group"]
        assert "redistribute them to Shard or Replicate" in found["partial"]
        assert "one of them has the classes" in found["twice"]


# ---- where there is no group ---------------------------------------------------------------------


def test_a_group_belongs_to_torch_and_an_axis_name_to_jax(lib):
    s = lib.array(np.zeros((2, 3)))
    for loss in LOSSES.values():
        wanted = "must be a .*ProcessGroup" if lib.root == "torch" else "group= is for torch"
        with pytest.raises(LibraryError, match=wanted):
            loss(s, s, group="all")
        wanted = "no mesh axis is called" if lib.root == "jax" else "axis_name= is for JAX"
        with pytest.raises(LibraryError, match=wanted):
            loss(s, s, axis_name="classes")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_rank_may_be_all_there_are(alone):
    for case in (Case("kl"), Case("js")):
        s, t = case.arrays()
        check(case.run(s, t, group=alone), case.run(s, t), 1e-15)
        assert case.run(s[:0], t[:0], group=alone)[1].shape == (0, CLASSES)
    half = [array.bfloat16() for array in logits(torch.float32)]
    loss = kldiv.kl_div_with_logits(*half, group=alone, dtype="float32", reduction="none")
    torch.testing.assert_close(
        loss, kldiv.kl_div_with_logits(*half, dtype="float32", reduction="none"), equal_nan=True
    )


def test_transforms_second_order_and_other_backends_are_refused(alone):
    s, t = (array.requires_grad_() for array in logits(torch.float64))
    with pytest.raises(LibraryError, match=r"loss\.backward\(\) only"):
        torch.func.grad(lambda a: kldiv.kl_div_with_logits(a, t, group=alone))(s)
    with forward_ad.dual_level(), pytest.raises(LibraryError, match="forward mode"):
        kldiv.kl_div_with_logits(s, t, group=alone)
    for dtype in (torch.float32, torch.float64):  # the former has a kernel, however few there are
        own = (array.detach().to(dtype) for array in (s, t))
        with pytest.raises(LibraryError, match=r"use the library's own.*loss\.backward"):
            kldiv.value_and_grad(kldiv.kl_div_with_logits)(*own, group=alone)
    with kldiv.config_context(backend="numpy"), pytest.raises(LibraryError, match="at 'auto'"):
        kldiv.kl_div_with_logits(s, t, group=alone)
    loss = kldiv.kl_div_with_logits(s, t, group=alone)
    with pytest.raises(LibraryError, match="leave create_graph out"):
        torch.autograd.grad(loss, s, create_graph=True)


def test_layers_that_are_sharded_get_an_error_whose_mend_works(alone):
    hidden, weight, wide, target = (
        torch.randn(size, dtype=torch.float64) for size in ((5, 4), (9, 4), (5, 3), (9, 3))
    )
    sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
    sharded.requires_grad_(), weight.requires_grad_()
    with pytest.raises(LibraryError, match=r"\.full_tensor\(grad_placements"):
        kldiv.linear_kl_div(hidden, sharded, wide, target)
    gathered = sharded.full_tensor(grad_placements=[Partial("avg")])
    kldiv.linear_kl_div(hidden, gathered, wide, target).backward()
    kldiv.linear_kl_div(hidden, weight, wide, target).backward()
    assert torch.equal(sharded.grad.full_tensor(), weight.grad)
