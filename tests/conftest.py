"""Settings of the whole suite."""

import os
import signal

import pytest
import torch

from pipeline.core.signals import SIGNALS
from pipeline.encoders import vit

# As in the Makefile: processes that tests start would compile torch and heareval each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
torch.set_num_threads(1)  # the suite runs one process per core; more threads only compete
# A shell that runs the suite in the background lets it ignore Ctrl-C, and what it starts, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


SLOWEST = "test_pipeline.py"


def pytest_collection_modifyitems(items):
    """Begin with the slowest file; each file runs in one process (`--dist loadfile`)."""
    items.sort(key=lambda item: item.path.name != SLOWEST)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty folder as the repository's root and working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _same_signals():
    """Restore the handlers of signals, which a stage sets."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def shallow(monkeypatch):
    """Transformers of 3 blocks (ViT_C: 2), for tests of what does not depend on their number."""
    monkeypatch.setattr(vit, "DEPTH", 3)
