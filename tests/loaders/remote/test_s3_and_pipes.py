"""Shards on S3 and shards that are a command's output."""

import pytest

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.loaders import RemoteError, make_loader, open_dataset
from maskco_fast.loaders.remote.errors import ShardChanged
from maskco_fast.loaders.shards.names import expand
from tests.support.remote_servers import VIEWS, assert_same, batches, hurried

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)


def test_s3_with_faults_in_front_of_it(make_shards, tmp_path, s3_api):
    shards = make_shards(3, 16)
    names = faulty.put_into_s3(shards, s3_api, "photographs")
    with faulty.FaultyServer(s3_api, faulty.at_random(0.25, seed=1)) as server:
        mine = batches(
            "s3://photographs/shard-{0000..0002}.tar",
            tmp_path,
            hurried(tmp_path, s3_endpoint=server.url),
        )
        assert sum(server.injected.values()) > 3
    assert_same(mine, batches(shards, tmp_path))
    assert expand("s3://photographs/shard-{0000..0002}.tar") == names


def test_s3_by_the_environment_and_what_is_missing_there(
    make_shards, tmp_path, s3_api, monkeypatch
):
    shards = make_shards(2, 8)
    faulty.put_into_s3(shards, s3_api, "paintings")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_api)
    assert (
        len(open_dataset("s3://paintings/shard-{0000..0001}.tar", remote=hurried(tmp_path))) == 16
    )
    with pytest.raises(
        FileNotFoundError,
        match=r"1 of 3 remote shards do not exist: s3://paintings/shard-0002\.tar",
    ):
        batches("s3://paintings/shard-{0000..0002}.tar", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"s3://nowhere/shard-0000\.tar"):
        batches("s3://nowhere/shard-0000.tar", tmp_path)


def test_a_pipe_that_breaks_off_is_begun_again(make_shards, tmp_path):
    """The first run of the command sends half of the shard and fails; the second succeeds."""
    shards = make_shards(3, 16)
    script = tmp_path / "unsteady.sh"
    script.write_text(
        'if mkdir "$1.begun" 2>/dev/null\n'
        'then head -c 20000 "$1"; echo "line lost" >&2; exit 7\n'
        'fi; cat "$1"'
    )
    mine = batches(f"pipe:sh {script} {tmp_path}/shard-{{0000..0002}}.tar", tmp_path)
    assert_same(mine, batches(shards, tmp_path))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cat {}.gone", r"exit code 1.*[Nn]o such file"),
        ("no-such-command {}", "exit code 127"),
        ("sleep 60; cat {}", "no answer in time"),
    ],
)
def test_a_pipe_that_cannot_work_ends_the_run(command, says, make_shards, tmp_path):
    (shard,) = make_shards(1, 8)
    name = "pipe:" + command.format(shard)
    with pytest.raises(RemoteError, match=says):
        batches(name, tmp_path, hurried(tmp_path, patience=0.5, timeout=0.3))


def test_a_pipe_with_other_bytes_is_refused(make_shards, tmp_path):
    (shard,) = make_shards(1, 8)
    config, name = hurried(tmp_path, patience=0.5), f"pipe:cat {shard}"
    dataset = open_dataset(name, index_folder=tmp_path / "index", remote=config)
    for file in (tmp_path / "cache").glob("*.tar"):
        file.unlink()
    with open(shard, "r+b") as file:
        file.seek(1000)
        file.write(b"other")
    with (
        make_loader(dataset, 8, views=VIEWS) as loader,
        pytest.raises(ShardChanged, match="must have the bytes that were indexed"),
    ):
        list(loader)
