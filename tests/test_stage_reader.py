"""Weights come from files in pieces, by several threads, bit for bit or not at all."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.states.stage_reader import fill
from mergekit_collapse.states.tensor_files import TensorFiles


@pytest.fixture
def tensors():
    """One of every kind, and one of no numbers at all."""
    generator = torch.Generator().manual_seed(0)
    return {
        "bfloat16": torch.randn(33, 17, generator=generator).bfloat16(),
        "float16": torch.randn(5, 7, 3, generator=generator).half(),
        "float64": torch.randn(9, generator=generator).double(),
        "int64": torch.randint(-(2**40), 2**40, (11,), generator=generator),
        "bool": torch.rand(13, generator=generator) > 0.5,
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }


@pytest.fixture
def files(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    return TensorFiles(tmp_path)


def filled(files, names, *, threads, size, copy=torch.Tensor.copy_):
    found = {name: files.empty(name, torch.device("cpu")) for name in names}
    for tensor in found.values():
        if tensor.numel():
            tensor.view(-1).view(torch.uint8).fill_(0xAA)  # what nobody writes to is seen
    buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        fill(files, found, buffers, copy, pool)
    return found


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 64, 1001, 2**16])
def test_every_kind_of_number_arrives_bit_for_bit(files, tensors, threads, size):
    found = filled(files, tensors, threads=threads, size=size)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_a_buffer_is_one_threads_at_a_time(files, tensors):
    held, lock, most = set(), threading.Lock(), []

    def copy(target, piece):
        with lock:
            assert piece.data_ptr() not in held
            held.add(piece.data_ptr())
            most.append(len(held))
        target.copy_(piece)
        # Long enough for others to come by.
        threading.Event().wait(0.0005)
        with lock:
            held.remove(piece.data_ptr())

    found = filled(files, tensors, threads=4, size=32, copy=copy)
    assert max(most) > 1
    assert torch.equal(found["bfloat16"], tensors["bfloat16"])


def test_an_error_ends_it(files, tensors, tmp_path):
    copied, before = [], threading.active_count()

    def copy(target, piece):
        copied.append(len(piece))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        filled(files, tensors, threads=2, size=1, copy=copy)
    assert len(copied) < 100
    assert threading.active_count() == before
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(EvaluationError, match=r"model\.safetensors: was (cut short|written to)"):
        filled(files, tensors, threads=2, size=64)


def test_nothing_runs_any_more_after_an_error(files, tensors):
    busy, ended = threading.Event(), []

    def copy(_target, piece):
        if busy.is_set():
            raise torch.OutOfMemoryError("CUDA out of memory")
        busy.set()
        threading.Event().wait(0.05)
        ended.append(len(piece))

    buffers = [torch.empty(64, dtype=torch.uint8) for _ in range(2)]
    found = {name: files.empty(name, torch.device("cpu")) for name in tensors}
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(torch.OutOfMemoryError):
            fill(files, found, buffers, copy, pool)
        # The other thread was waited for, and the pool is good for more.
        assert ended
        fill(files, found, buffers, torch.Tensor.copy_, pool)
    assert torch.equal(found["float16"], tensors["float16"])
