"""``.pt`` and ``.pth``: tensors, by torch's loader of weights, which runs no code of the file."""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING, Any

from kldiv.readers.sources import Source, check_budget, choose, needed, parsing
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_torch(source: Source) -> Table:
    """Return a tensor of a file that ``torch.save`` wrote."""
    torch: Any = needed(source, "torch", "torch")
    if not zipfile.is_zipfile(source.file):
        raise source.error("a format of old versions, a bare pickle. Save it again by torch.save")
    with parsing(source, "file of torch tensors"):
        with zipfile.ZipFile(source.file) as archive:
            if any(info.compress_type for info in archive.infolist()):
                raise source.error("is compressed, as torch never writes it. Save it again")
        check_budget(source, source.size, source.size)
        source.file.seek(0)
        try:
            found = torch.load(source.file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise source.error(
                "holds other things than tensors, which only unpickling could read, and that runs"
                " whatever code the file holds. Save tensors alone"
            ) from error
        tensors = dict(_tensors(found, torch.Tensor, ""))
        member = choose(source, tensors, "tensors") if "" not in tensors else None
        tensor = tensors[member or ""].detach()
        if tensor.layout != torch.strided or tensor.is_complex():
            raise source.error("is no dense tensor of real numbers. Convert it first", member)
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        check_budget(source, tensor.numel() * tensor.element_size(), source.size, member)
        return Table(tensor.contiguous().numpy(), source.path, member)


def _tensors(found: Any, kind: type, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dictionaries and lists by name."""
    if isinstance(found, kind):
        yield name, found
    elif isinstance(found, dict | list | tuple):
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        for key, each in pairs:
            yield from _tensors(each, kind, f"{name}.{key}" if name else str(key))
