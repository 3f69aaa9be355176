"""What the tests of readers share: that a file is refused, and what must not be unpickled."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldiv.errors import InputError
from kldiv.readers import read


def refused(path, *words, **options):
    """Check that a file is refused in a message that names it and all these words; return it."""
    with pytest.raises(InputError) as caught:
        read(path, **options)
    message = str(caught.value)
    for word in (Path(path).name.split("::")[0], *words):
        assert word in message
    return message


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
