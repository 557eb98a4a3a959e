"""The benchmarks of remote shards at their smallest settings, with real servers."""

import dataclasses
import pathlib

import pytest

from benchmarks.correctness import faults, soak
from maskco_fast.kernels.errors import InvalidInput
from tests.support.processes import fork_context

pytest.importorskip("s3fs", reason="pip install 'maskco-fast[remote]' reads remote shards")
pytest.importorskip("moto.server", reason="pip install 'moto[server,s3]' brings an S3 API")

FAULTS = faults.Options(
    samples=16,
    sources=("s3, stream",),
    stall=1.0,
    timeout=0.5,
    patience=1.5,
    size=32,
    batch_size=8,
)


@pytest.fixture
def few_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault a method, so that the table has three rows a source."""
    monkeypatch.setattr(faults, "BODY_FAULTS", ("truncated",))
    monkeypatch.setattr(faults, "HEAD_FAULTS", ("503",))


@pytest.mark.usefixtures("few_faults")
def test_every_fault_leaves_the_epoch_as_it_is(capsys: pytest.CaptureFixture[str]):
    assert faults.main(FAULTS) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if " yes " in line]
    assert len(rows) == 3
    endless = lines[lines.index("", lines.index("") + 1) + 1 :]
    assert len(endless) == 6
    assert all("demo-0003-of-0004" in line for line in endless), endless


@pytest.mark.usefixtures("few_faults")
def test_a_wrong_batch_fails_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults, "same", lambda mine, theirs: False)
    monkeypatch.setattr(faults, "endless", lambda name: [])
    assert faults.main(dataclasses.replace(FAULTS, sources=("http",))) == 1


def test_an_unknown_source_is_refused():
    with pytest.raises(InvalidInput, match=r"sources must be among http, .*, got 'ftp'"):
        faults.Options(sources=("ftp",))


def test_a_short_soak(
    make_shards,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A second or two, in processes that start fast."""
    monkeypatch.setattr(soak, "CONTEXT", fork_context())
    options = soak.Options(
        shards=tuple(make_shards(1, 34)),
        minutes=1.5 / 60,
        interval=0.5,
        faults=0.02,
        timeout=0.5,
        samples=1,
        size=32,
        batch_size=4,
        json=tmp_path / "soak.json",
    )
    soak.main(options)
    out = capsys.readouterr().out
    assert "34 images in 34 shards" in out
    assert "each in the order of the local shards" in out
    assert "warned" not in out
    assert (tmp_path / "soak.json").exists()


def test_an_epoch_in_another_order_ends_the_soak(make_shards):
    dataset = soak.open_dataset(make_shards(1, 16))
    options = soak.Options(shards=(), batch_size=4, size=32)
    with soak.make_loader(dataset, 8, views=soak.ViewConfig.maskco(32)) as loader:
        indices = [batch.index.numpy() for batch in loader]
    ranks = [[soak.np.concatenate([batch[:4] for batch in indices])]]
    ranks += [[soak.np.concatenate([batch[4:] for batch in indices])]]
    assert soak.check(dataset, ranks, options) == 1
    with pytest.raises(AssertionError, match="epoch 0 differs from the local shards"):
        soak.check(dataset, ranks[::-1], options)
