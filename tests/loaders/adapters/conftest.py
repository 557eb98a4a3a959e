"""Shards for training steps in other codebases: 16 small images, 4 batches of 4."""

import pytest

from tests.support.images import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("adapters"), 2, 8, side=40)
