"""Small detection data: a few demo scenes, and a folder in VOC's layout."""

import dataclasses
import pathlib
from collections.abc import Callable

import pytest
from PIL import Image

from maskco_fast.demo.detection import demo_detection
from maskco_fast.detection.config import RECIPES, DetectConfig, DetectorConfig

OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
  </object>"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A demo set of 8 scenes to train on and 3 to test on, about 70 pixels a side."""
    return demo_detection(tmp_path_factory.mktemp("scenes"), train=8, val=3, size=(64, 80))


@pytest.fixture
def tiny(scenes: pathlib.Path, tmp_path: pathlib.Path) -> DetectConfig:
    """A run of 2 steps of 2 images, 64 pixels a side, in float32 so that it repeats exactly."""
    return dataclasses.replace(
        RECIPES["demo"](),
        data=scenes,
        run_dir=tmp_path / "run",
        max_steps=2,
        milestones=(1,),
        warmup_steps=1,
        batch_size=2,
        short_sides=(64, 80),
        long_side=96,
        test_short_side=64,
        test_long_side=96,
        precise_bn=1,
        eval_every=None,
        pictures=1,
        log_every=1,
        tensorboard=False,
        precision="fp32",
        device="cpu",
        threads=2,
        model=DetectorConfig(
            trunk="resnet18",
            masks=True,
            anchor_sizes=(16, 32),
            roi_size=4,
            anchors_per_image=16,
            rois_per_image=8,
            proposals_train=(50, 10),
            proposals_test=(50, 10),
            detections=5,
            score_threshold=0.0,
        ),
    )


@pytest.fixture
def write_voc(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """A function that writes a VOC folder of one image and returns the folder.

    Takes (name, (xmin, ymin, xmax, ymax), difficult) of each object.
    """

    def write(*objects: tuple[str, tuple, int], size: tuple[int, int] = (40, 30)) -> pathlib.Path:
        folder = tmp_path / "VOC2007"
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
        Image.new("RGB", size, "grey").save(folder / "JPEGImages" / "000001.jpg")
        text = "".join(OBJECT.format(name=n, box=box, difficult=d) for n, box, d in objects)
        (folder / "Annotations" / "000001.xml").write_text(
            f"<annotation>\n  <size><width>{size[0]}</width><height>{size[1]}</height></size>"
            f"{text}\n</annotation>\n"
        )
        return folder

    return write
