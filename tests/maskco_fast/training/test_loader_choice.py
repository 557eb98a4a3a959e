"""`--loader auto`: the choice, its printed reason, and loader.json."""

import json
from typing import Any

import pytest

from maskco_fast.loaders import Loader, TooManyBadSamples, ViewConfig, make_loader
from maskco_fast.training import loader_choice
from maskco_fast.training.loader_choice import choose_loader, images_per_s, measure
from tests.support.images import skip_without_packages


class Rated:
    """A loader of a given speed; `rate` may be an exception that measuring it raises."""

    def __init__(self, rate, batches=5):
        self.rate, self.batches = rate, batches

    def __len__(self):
        return self.batches


@pytest.fixture
def rated(monkeypatch):
    """A function from loaders' rates to a `make`; a loader without a rate is not installed."""

    def speed(loader):
        if isinstance(loader.rate, Exception):
            raise loader.rate
        return loader.rate

    monkeypatch.setattr(loader_choice, "images_per_s", speed)

    def factory(**rates):
        def make(name):
            if name not in rates:
                raise ImportError(f"no {name}")
            return Rated(rates[name])

        return make

    return factory


def test_the_fastest_is_taken_where_it_is_clearly_faster(rated):
    assert measure(rated(native=100.0, dali=180.0, ffcv=150.0)).loader == "dali"
    near = measure(rated(native=100.0, dali=104.0))
    assert near.loader == "native"
    assert near.why == "dali 104 images/s, native 100 images/s, ffcv is not installed"
    assert near.images_per_s == {"native": 100.0, "dali": 104.0}


def test_the_native_loader_alone_is_not_measured(rated):
    choice = measure(rated(native=RuntimeError("measured")))
    assert choice.loader == "native"
    assert choice.why == "dali is not installed, ffcv is not installed"


def test_a_candidate_that_fails_is_left_out_and_the_native_one_is_not(rated):
    choice = measure(rated(native=100.0, dali=RuntimeError("no driver"), ffcv=300.0))
    assert choice.loader == "ffcv"
    assert "dali failed: no driver" in choice.why
    with pytest.raises(RuntimeError, match="the disk"):
        measure(rated(native=RuntimeError("the disk"), dali=100.0))
    with pytest.raises(TooManyBadSamples):
        measure(rated(native=100.0, dali=TooManyBadSamples("all")))


def test_less_than_a_batch_is_not_measured():
    def make(name: str) -> Any:
        return Rated(1.0, batches=0)

    assert measure(make).why == "too few samples for a measurement"


def test_the_run_folder_remembers(rated, tmp_path, capsys):
    run_dir = tmp_path / "runs" / "one"
    assert choose_loader(run_dir, rated(native=100.0, ffcv=300.0)) == "ffcv"
    assert (
        "loader ffcv: ffcv 300 images/s, native 100 images/s, dali is not installed"
        in capsys.readouterr().err
    )
    assert json.loads((run_dir / "loader.json").read_text())["images_per_s"] == {
        "native": 100.0,
        "ffcv": 300.0,
    }
    assert choose_loader(run_dir, rated(native=100.0)) == "ffcv"
    assert "chosen when this run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"loader": "other"}', '{"loader": []}', '{"who": "me"}']
)
def test_a_damaged_or_foreign_choice_is_made_anew(rated, tmp_path, content):
    (tmp_path / "loader.json").write_text(content)
    with pytest.warns(UserWarning, match=r"loader\.json is unreadable .* measured again"):
        assert choose_loader(tmp_path, rated(native=100.0, ffcv=300.0)) == "ffcv"
    assert json.loads((tmp_path / "loader.json").read_text())["loader"] == "ffcv"


@pytest.mark.parametrize("backend", ["native", "dali", "ffcv"])
def test_loaders_are_measured_over_epochs_and_closed(backend, make_shards, monkeypatch):
    skip_without_packages(backend)
    monkeypatch.setattr(loader_choice, "SECONDS", 0.1)
    loader: Loader = make_loader(make_shards(1, 8), 4, views=ViewConfig.maskco(48), backend=backend)
    assert images_per_s(loader) > 0
    assert loader._current is None
