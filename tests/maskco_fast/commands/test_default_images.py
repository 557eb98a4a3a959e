"""Commands that need images but no labels take the demo set where none are named."""

import numpy as np
from PIL import Image

from maskco_fast.commands import distance, mph
from maskco_fast.commands.distance import DistanceConfig
from maskco_fast.commands.mph import MphConfig


def test_no_shards_are_the_demo_sets_validation_part(tmp_path, monkeypatch, make_shards):
    (shard,) = make_shards(1, 4)
    for command in (mph, distance):
        monkeypatch.setattr(command, "demo_val_shards", lambda progress: [shard])
    out = tmp_path / "mph.png"
    assert mph.mph(MphConfig(weights="random", count=1, size=32, out=out)) == 0
    assert np.asarray(Image.open(out)).ndim == 3
    config = DistanceConfig(weights="random", images=2, size=32, json=str(tmp_path / "d.json"))
    assert distance.distance(config) == 0
    assert (tmp_path / "d.json").exists()
