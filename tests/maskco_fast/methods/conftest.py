"""One thread for the tests of methods."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The same sums on every machine, and the other cores left to other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
