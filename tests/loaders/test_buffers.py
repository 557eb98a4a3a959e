"""The pool of batch buffers: a buffer is free when nothing but the pool refers to it."""

import gc

import torch

from maskco_fast.loaders.buffers import BufferPool, is_unused


def test_a_buffer_is_reused_only_when_nothing_refers_to_it():
    pool = BufferPool((2, 3), torch.float16)
    first = pool.take()
    address = first.ctypes.data
    tensor = pool.tensor(first)[:, :1]
    assert pool.take().ctypes.data != address
    del first
    assert pool.take().ctypes.data != address
    del tensor
    gc.collect()
    assert pool.take().ctypes.data == address


def test_an_array_in_a_list_alone_is_unused():
    pool = BufferPool((1,), torch.uint8)
    arrays = [pool.take().copy(), pool.take().copy()]
    held = arrays[1]
    for _ in range(100):  # the interpreter specialises the code as it runs
        assert is_unused(arrays, 0)
        assert not is_unused(arrays, 1)
    del held
    assert is_unused(arrays, 1)
