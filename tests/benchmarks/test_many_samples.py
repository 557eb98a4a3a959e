"""`benchmarks.speed.many_samples`: its shards are indexed as any others, and a run measures."""

from benchmarks.speed import many_samples
from maskco_fast.loaders import open_dataset


def test_its_shards_hold_the_samples(tmp_path):
    options = many_samples.Options(shards=3, samples=9)
    many_samples.write_shards(tmp_path, options)
    dataset = open_dataset(many_samples.pattern(tmp_path, options), index_folder=tmp_path / "index")
    assert len(dataset) == 27
    assert not list(dataset.bad)
    assert not dataset.keys_repeat
    assert dataset.shards[2].key(8) == "00029997/000008"


def test_a_synthetic_table_is_opened_and_read(capsys, tmp_path):
    many_samples.main(
        many_samples.Options(
            shards=40,
            samples=1000,
            synthetic=True,
            ranks=1,
            batch_size=8,
            batches=2,
            folder=tmp_path,
        )
    )
    printed = capsys.readouterr().out
    assert "40000 samples in 40 shards" in printed
    assert "first batch of a resumed run" in printed
    assert list(tmp_path.iterdir()) == []
