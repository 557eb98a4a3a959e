"""What a batch offers to code that was written for plain tuples and dictionaries."""

import pytest
import torch

from maskco_fast.loaders import Batch


def make_batch(views: int = 2, *, boxes: bool = False) -> Batch:
    return Batch(
        views=tuple(
            torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            for _ in range(views)
        ),
        sample_id=torch.arange(4) + 2**60,
        target=torch.arange(4),
        index=torch.arange(4),
        masked_box=torch.rand(4, 4) if boxes else None,
        key_boxes=torch.rand(4, 17, 4) if boxes else None,
        names=[("shard.tar", str(n)) for n in range(4)],
        fields={"txt": ["a", "b", None, "d"]},
    )


def test_it_unpacks_as_views_and_target():
    batch = make_batch()
    query, key, target = batch
    assert query is batch.query
    assert key is batch.key
    assert target is batch.target
    (view, target) = make_batch(1)
    assert view.shape == (4, 3, 8, 8)
    batch = make_batch(boxes=True)
    _, _, masked_box, key_boxes, target = batch
    assert masked_box is batch.masked_box
    assert key_boxes is batch.key_boxes
    assert target is batch.target


def test_its_parts_have_names():
    batch = make_batch()
    for name in ("query", "key", "target", "sample_id", "index", "views", "names"):
        assert batch[name] is getattr(batch, name)
    assert batch["txt"] == ["a", "b", None, "d"]
    assert batch[0] is batch.query
    assert batch[-1] is batch.target
    with pytest.raises(KeyError, match="'masked_box' is not in this batch, which has txt, query"):
        batch["masked_box"]
    with pytest.raises(IndexError):
        batch[3]


def test_its_text_says_what_it_holds():
    assert repr(make_batch(boxes=True)) == (
        "Batch(4 samples: 2 views (4, 3, 8, 8) float32 on cpu; sample_id (4,); target (4,); "
        "index (4,); masked_box (4, 4); key_boxes (4, 17, 4); names; fields txt)"
    )


def test_a_dtype_is_for_the_views():
    batch = make_batch(boxes=True)
    for half in (batch.to(dtype=torch.float16), batch.to(torch.float16)):
        assert all(view.dtype == torch.float16 for view in half.views)
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in half.views)
        assert half["key_boxes"].dtype == torch.float32
        assert half.target.dtype == torch.int64
        assert half.names == batch.names
    assert batch.cpu().query is batch.query
    meta = batch.to("meta", torch.bfloat16)
    assert {tensor.device.type for tensor in meta} == {"meta"}
    assert meta.query.dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            batch.cuda()


def test_split_takes_names_and_fields_along():
    first, second = make_batch().split(3)
    assert (len(first), len(second)) == (3, 1)
    assert second.names == [("shard.tar", "3")]
    assert first["txt"] == ["a", "b", None]
    assert second["txt"] == ["d"]
