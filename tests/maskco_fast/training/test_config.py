"""`TrainConfig`: which fields a resumed run may change, and old checkpoints' configs."""

import dataclasses
import json

from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.methods.moco_v2 import MoCoV2Config
from maskco_fast.methods.registry import METHODS
from maskco_fast.methods.view_options import ViewOptions
from maskco_fast.training.config import MAY_CHANGE, TrainConfig, differences

FIXED = {
    "batch_size",
    "decode",
    "labels",
    "method",
    "model",
    "optimizer",
    "seed",
    "views",
    *METHODS,
}
"""The fields that determine a run's numbers, apart from their rounding."""


def test_fields_that_a_resumed_run_may_change():
    fields = dataclasses.fields(TrainConfig)
    assert {field.name for field in fields if field.metadata != MAY_CHANGE} == FIXED


def test_differences_are_of_fixed_fields_alone():
    stored = dataclasses.asdict(TrainConfig())
    changed = TrainConfig(max_steps=7, device="cpu", seed=4, maskco=MaskCoConfig(temperature=0.1))
    assert differences(stored, changed) == ["maskco.temperature: 0.2 -> 0.1", "seed: 0 -> 4"]


def test_a_config_that_went_through_json_has_no_differences():
    config = TrainConfig(maskco=MaskCoConfig(box_side=(32.0, 64.0)))
    stored = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    assert differences(stored, config) == []


def test_a_checkpoint_older_than_a_field_or_a_method_is_compared_by_their_defaults():
    stored = dataclasses.asdict(TrainConfig())
    del stored["npid"]
    del stored["maskco"]["mask"]
    del stored["decode"]
    assert differences(stored, TrainConfig()) == []
    changed = TrainConfig(decode="fast", maskco=MaskCoConfig(mask=False))
    assert differences(stored, changed) == ["decode: exact -> fast", "maskco.mask: True -> False"]


def test_views_are_compared_also_with_a_checkpoint_from_before_they_were_options():
    stored = dataclasses.asdict(TrainConfig())
    del stored["views"]
    assert differences(stored, TrainConfig()) == []
    changed = TrainConfig(views=ViewOptions(area=(0.08, 1.0)))
    assert differences(stored, changed) == ["views.area: None -> [0.08, 1.0]"]
    assert differences(dataclasses.asdict(changed), changed) == []
    other = TrainConfig(views=ViewOptions(area=(0.2, 1.0)))
    stored = json.loads(json.dumps(dataclasses.asdict(changed), default=str))
    assert differences(stored, other) == ["views.area: [0.08, 1.0] -> [0.2, 1.0]"]


def test_other_methods_configs_are_not_compared():
    stored = dataclasses.asdict(TrainConfig())
    assert differences(stored, TrainConfig(moco_v2=MoCoV2Config(queue=128))) == []
