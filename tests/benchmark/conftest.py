"""What exists before these tests is kept out of collections: they would take long."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)  # the harness does it after each run
        yield
    gc.unfreeze()
