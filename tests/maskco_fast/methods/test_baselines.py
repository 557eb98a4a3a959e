"""Baselines: MoCo v2's, SimCLR's and NPID's steps by hand; of all, exact resume and two processes
equal to one."""

import datetime
import math
from typing import Any

import pytest
import torch
import torch.distributed
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from maskco_fast.loaders import Batch
from maskco_fast.methods.counter_random import random_integers, random_permutation
from maskco_fast.methods.instance_contrast import noise_contrastive, nt_xent, queue_info_nce
from maskco_fast.methods.moco_v2 import MoCoV2Config
from maskco_fast.methods.npid import mean_exponential
from maskco_fast.methods.registry import METHODS, make_method
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.networks.encoders import MovingAverage
from maskco_fast.training import checkpoint
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.optimizer import OptimizerConfig, make_optimizer
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.trainer import Trainer
from tests.support.processes import run_ranks
from tests.support.runs import losses
from tests.support.small_methods import (
    MODEL,
    SAMPLES,
    SIDE,
    batches,
    small_config,
    small_method,
    train_step,
)
from tests.support.tiny_run import NoiseLoader

BASELINES = [name for name in METHODS if name != "maskco"]
"""Every further method is resumed and distributed below."""


def test_mocos_steps_by_hand():
    config = small_config("moco_v2")
    method, by_hand = small_method(config, torch.float64), small_method(config, torch.float64)
    optimizer, second = (
        make_optimizer(one.parameters(), config.optimizer) for one in (method, by_hand)
    )
    queue = by_hand.queue.clone()
    for number, batch in enumerate(batches(4, torch.float64)):
        order = random_permutation(config.seed, torch.tensor(number), SAMPLES).tolist()
        with torch.no_grad():  # the key network sees the images in that order, in groups of 4
            shuffled = by_hand.key(torch.stack([batch.key[place] for place in order]))
        keys = normalize(torch.stack([shuffled[order.index(place)] for place in range(SAMPLES)]))
        loss, _ = queue_info_nce(by_hand.query(batch.query), keys, queue, temperature=0.2)
        second.zero_grad()
        loss.backward()
        second.step()
        MovingAverage(by_hand.key, by_hand.query).update(0.9)
        for place, key in enumerate(keys):
            queue[(number * SAMPLES + place) % 20] = key
        assert train_step(method, optimizer, batch) == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(method.queue, queue, rtol=1e-7, atol=1e-9)
    assert method.pointer.item() == 32 % 20
    assert method.steps.item() == 4


def test_mocos_groups_change_from_step_to_step_and_leave_the_own_order():
    """Shuffle-BN: a key is normalised by other statistics than its query's group has."""
    method = small_method(small_config("moco_v2"))
    batch = batches(1)[0]
    plain = normalize(method.key(batch.key))
    first = method._keys(batch.key)
    method.steps.add_(1)
    second = method._keys(batch.key)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, plain, atol=1e-3)
    # Without batch statistics only the order is left, and that is the images' own.
    method.key.eval()
    torch.testing.assert_close(
        method._keys(batch.key), normalize(method.key(batch.key)), rtol=1e-4, atol=1e-5
    )


def test_a_batch_longer_than_the_queue_leaves_its_last_keys():
    method = small_method(small_config("moco_v2", moco_v2=MoCoV2Config(queue=3)))
    method(batches(1)[0])
    keys = method._new_keys[0]
    method.after_step(0.0)
    torch.testing.assert_close(method.queue, keys[-3:])


def test_simclr_normalises_both_views_together():
    method, by_hand = small_method(small_config("simclr")), small_method(small_config("simclr"))
    batch = batches(1)[0]
    features = by_hand.query(torch.cat(batch.views))
    views = features[:SAMPLES], features[SAMPLES:]
    wanted, _ = nt_xent(views, views, first=0, temperature=0.1)
    assert method(batch)["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert features.mean(0).abs().max() < 1e-5  # the head ends in BatchNorm, over 16 rows


@pytest.mark.parametrize("method", ["simclr", "byol", "rotation"])
def test_batch_norm_over_the_whole_batch_rules_micro_batches_out(method):
    with pytest.raises(ValueError, match=f"`accumulate` must be 1 for {method}, got 2"):
        small_config(method, accumulate=2)


def test_npids_steps_by_hand():
    config = small_config("npid")
    method, by_hand = small_method(config, torch.float64), small_method(config, torch.float64)
    optimizer, second = (
        make_optimizer(one.parameters(), config.optimizer) for one in (method, by_hand)
    )
    bank = by_hand.bank.clone()
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(len(bank), dtype=torch.float64))
    for number, batch in enumerate(batches(4, torch.float64)):
        positions = torch.arange(SAMPLES * 5)
        noise = random_integers(config.seed, torch.tensor(number), positions) % len(bank)
        features = by_hand.query(batch.query)
        loss, _ = noise_contrastive(
            features,
            bank[batch.index],
            bank[noise].view(SAMPLES, 5, -1),
            samples=24,
            temperature=0.07,
            partition=24 * mean_exponential(1 / 0.07, 16),
        )
        second.zero_grad()
        loss.backward()
        second.step()
        for place, feature in zip(batch.index.tolist(), normalize(features.detach())):
            bank[place] = normalize(bank[place] + feature, dim=0)
        assert train_step(method, optimizer, batch) == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(method.bank, bank, rtol=1e-7, atol=1e-9)


def test_npid_without_a_bank_says_what_to_call():
    config = small_config("npid")
    method = make_method("npid", config.npid, config.model, seed=0)
    with pytest.raises(ValueError, match="prepare"):
        method(batches(1)[0])


def test_chance_is_what_equal_chances_give():
    paper = {name: RECIPES["paper"](name) for name in BASELINES}
    chance = {
        name: make_method(name, config.method_config, MODEL, seed=0).chance_loss(256)
        for name, config in paper.items()
    }
    assert chance["moco_v2"] == pytest.approx(math.log(65_537))
    assert chance["simclr"] == pytest.approx(math.log(511))
    assert chance["byol"] == 4  # 2 - 2cos for both orders of the views, at a cosine of 0
    assert chance["relative_loc"] == pytest.approx(math.log(8))
    assert chance["rotation"] == pytest.approx(math.log(4))
    # NCE with P(i|v) = 1/n for every entry: h = 1 / (1 + M).
    assert chance["npid"] == pytest.approx(-math.log(1 / 4097) - 4096 * math.log(4096 / 4097))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("moco_v2", ("sgd", 0.03, 1e-4, None, "cosine", 0)),
        ("simclr", ("lars", 0.3, 1e-6, None, "cosine", 50_000)),
        ("npid", ("sgd", 0.03, 1e-4, None, "cosine", 0)),
        # Warm-ups of 2 and 5 epochs of ImageNet, rates for 256 images (docs/method.md).
        ("byol", ("lars", 0.2, 1.5e-6, None, "cosine", 10_000)),
        ("relative_loc", ("sgd", 0.1, 1e-4, 5e-4, "step", 25_000)),
        ("rotation", ("sgd", 0.4, 1e-4, None, "step", 25_000)),
    ],
)
def test_the_paper_recipe_has_the_methods_optimiser(method, wanted):
    config = RECIPES["paper"](method)
    optimizer = config.optimizer
    names = ("name", "learning_rate", "weight_decay", "head_weight_decay", "schedule")
    found = [getattr(optimizer, name) for name in (*names, "warmup_steps")]
    assert tuple(found) == wanted
    assert (optimizer.milestones, optimizer.drop) == ((30 / 70, 50 / 70), 0.1)
    assert (config.moco_v2.queue, config.moco_v2.momentum, config.moco_v2.temperature) == (
        65_536,
        0.999,
        0.2,
    )
    assert (config.simclr.temperature, config.npid.temperature) == (0.1, 0.07)


def trainer(config: TrainConfig, **loader: Any) -> Trainer:
    return Trainer(config, small_method(config), NoiseLoader(size=SIDE, batch=SAMPLES, **loader))


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_goes_on_to_the_last_bit(tmp_path, method):
    lars = RECIPES["paper"](method).optimizer.name == "lars"
    optimizer = OptimizerConfig(name="lars", learning_rate=1.0) if lars else OptimizerConfig()
    whole, parted = (
        small_config(method, tmp_path / name, optimizer=optimizer, checkpoint_every=10)
        for name in ("whole", "parted")
    )
    assert trainer(whole).fit() is None
    assert trainer(parted, signal_at=4, number=15).fit() == "SIGTERM"
    assert trainer(parted).fit() is None
    assert losses(parted.run_dir) == losses(whole.run_dir)
    wanted, found = (
        checkpoint.load_newest(config.run_dir / "checkpoints") for config in (whole, parted)
    )
    assert wanted is not None
    assert found is not None
    for name, value in wanted["method"].items():
        assert torch.equal(found["method"][name], value), name


def share_of(batch: Batch, rank: int, size: int) -> Batch:
    own = slice(rank * len(batch) // size, (rank + 1) * len(batch) // size)
    return batch._map(lambda tensor: tensor[own])


def run_steps(
    method_name: str, rank: int, size: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of three steps on this process's share, in float64, and the state after them."""
    config = small_config(method_name)
    method = small_method(config, torch.float64)
    # As the trainer does.
    forward = DistributedDataParallel(method, broadcast_buffers=False) if size > 1 else None
    optimizer = make_optimizer(method.parameters(), config.optimizer)
    found = [
        train_step(method, optimizer, share_of(batch, rank, size), forward, progress=number / 3)
        for number, batch in enumerate(batches(3, torch.float64))
    ]
    return found, method.state_dict()


def process(rank: int, folder: str, size: int) -> None:
    """One of the processes: runs all methods in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {name: run_steps(name, rank, size) for name in BASELINES}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    run_ranks(process, (str(folder), 2))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", BASELINES)
def test_two_processes_equal_one_of_two_groups(two_processes, method):
    one_losses, one = run_steps(method, 0, 1)
    (first_losses, first), (second_losses, second) = (results[method] for results in two_processes)
    assert [(a + b) / 2 for a, b in zip(first_losses, second_losses)] == pytest.approx(
        one_losses, rel=1e-9
    )
    for name, value in one.items():
        if "running" not in name:  # each process's own, where statistics are of groups
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)
        elif METHODS[method].method.spans_whole_batch:
            torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)


def test_simclr_synchronises_batch_norm():
    assert isinstance(small_method(small_config("simclr")).query.trunk.bn1, SynchronizedBatchNorm)
