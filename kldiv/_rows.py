"""The arguments of a loss of rows of logits: resolved, checked, the classes on the last axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv._arguments import check_heat, check_row_arrays, split_temperature
from kldiv._call import Call, Reducing, dtypes, resolve_arrays
from kldiv.errors import LibraryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kldiv._types import Array, Reduction

_NONE: Mapping[str, Array | None] = {}


class Rows:
    """The arrays of a loss of rows as an operation takes them, and the call that they make."""

    def __init__(
        self,
        names: Sequence[str],
        logits: Sequence[Array],
        check: Callable[..., bool],
        *,
        sharded: int = -1,
        before: Mapping[str, Array | None] = _NONE,
        after: Mapping[str, Array | None] = _NONE,
        axis: int = -1,
        temperature: float | Array = 1.0,
        reduction: Reduction = "mean",
        where: Array | None = None,
        row_weight: Array | None = None,
        normalizer: float | Array | None = None,
        dtype: Any = None,
        group: Any = None,
        axis_name: Any = None,
    ) -> None:
        """Resolve and check; the options from ``axis`` on are those of `kldiv.kl_div_with_logits`.

        ``logits`` are the arrays with classes, the first one with the rows' shape; ``check`` takes
        their shapes, the axis, and whether ranks may have no class, and returns whether the axis is
        the last. ``sharded`` is the place of the other one whose classes may be spread over ranks.
        Arrays of rows come ``before`` the temperature and ``after`` it.
        """
        self.temperature, heat = split_temperature(temperature)
        of_rows = {**before, "temperature": heat, **after, "row_weight": row_weight, "where": where}
        self.reducing = Reducing.of(reduction, normalizer, of_rows)
        self.route, found, wide = resolve_arrays(names, logits, **self.reducing.others)
        arrays, others = found[: len(names)], found[len(names) :]
        given, self.divisor = self.reducing.named(self.route, others)
        self.spread = self.route.caller.spread(arrays[0], arrays[sharded], group, axis_name)
        if self.spread is not None and self.route.moves:
            raise LibraryError(
                "logits that are spread over ranks are computed where they are; leave backend and "
                "device at 'auto'"
            )
        is_last = check(*[array.shape for array in arrays], axis, empty=self.spread is not None)
        if not is_last:
            xp = self.route.caller.namespace(arrays[0])
            arrays = tuple([xp.moveaxis(array, axis, -1) for array in arrays])
            if "target_indices" in given:
                given["target_indices"] = xp.moveaxis(given["target_indices"], axis, -1)
        self.axis = -1 if is_last else axis
        self.arrays = arrays
        self.settings = reduction, *dtypes(self.route, wide, dtype, arrays[0])
        """Reduction and dtypes, with which an operation begins."""
        compute = self.settings[1]
        check_heat(self.temperature, compute)
        self.of_rows = check_row_arrays(self.route, given, arrays[0].shape[:-1], compute)

    def call(
        self, operation: Any, kind: type[Call[Any]] | None = None, **options: Any
    ) -> Call[Any]:
        """Return the call of an operation of the arrays."""
        kind = Call if kind is None else kind  # torch.compile makes no object of a default's class
        return kind(
            self.route,
            self.reducing.loss(operation),
            *self.arrays,
            *self.of_rows.values(),
            axis=self.axis,
            spread=self.spread,
            normalizer=self.divisor,
            **options,
        )
