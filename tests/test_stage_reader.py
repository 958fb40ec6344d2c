"""Weights come from files in pieces, by several threads, bit for bit or not at all."""

import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.states import tensor_files
from mergekit_collapse.states.stage_reader import fill
from mergekit_collapse.states.tensor_files import TensorFiles

pytestmark = pytest.mark.slow


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
@pytest.mark.parametrize("by_place", [True, False], ids=["preadv", "seek and read"])
def test_every_kind_of_number_arrives_bit_for_bit(
    files, tensors, threads, size, by_place, monkeypatch
):
    if not by_place:
        monkeypatch.delattr(os, "preadv", raising=False)
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


def test_an_error_ends_it(files, tensors):
    """What runs is waited for, what waits is not begun, and the threads are good for more."""
    begun, ended = threading.Barrier(2, timeout=60), []

    def copy(_target, piece):
        if not ended:
            place = begun.wait()
            if place:
                raise torch.OutOfMemoryError("CUDA out of memory")
            threading.Event().wait(0.05)
        ended.append(len(piece))

    buffers = [torch.empty(64, dtype=torch.uint8) for _ in range(2)]
    found = {name: files.empty(name, torch.device("cpu")) for name in tensors}
    pieces = sum(-(-tensor.nbytes // 64) for tensor in tensors.values())
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(torch.OutOfMemoryError):
            fill(files, found, buffers, copy, pool)
        assert 1 <= len(ended) < pieces - 1
        fill(files, found, buffers, torch.Tensor.copy_, pool)
    assert torch.equal(found["float16"], tensors["float16"])


def test_an_error_does_not_hold_on_to_the_tensors(files):
    """Of the last piece neither, which is here the only one."""

    def copy(_target, _piece):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def failed():
        found = {"float64": files.empty("float64", torch.device("cpu"))}
        gone = weakref.ref(found["float64"])
        with ThreadPoolExecutor(1) as pool, pytest.raises(torch.OutOfMemoryError):
            fill(files, found, [torch.empty(2**16, dtype=torch.uint8)], copy, pool)
        return gone

    gc.disable()
    try:
        assert failed()() is None
    finally:
        gc.enable()


def test_a_file_that_is_cut_short_is_told(files, tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(EvaluationError, match=r"model\.safetensors: was (cut short|written to)"):
        filled(files, tensors, threads=2, size=64)


def test_equal_tensors_are_told_from_others_piece_by_piece(files, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_PIECE", 64)
    monkeypatch.setattr(tensor_files, "_SAMPLE", 2)
    (tmp_path / "other").mkdir()
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["bfloat16"][16, 8] += 1  # far from both ends
    changed["float64"][4] = -0.0
    save_file({**changed, "zero": torch.zeros(9)}, tmp_path / "other" / "model.safetensors")
    other = TensorFiles(tmp_path / "other")
    assert files.may_equal("bfloat16", other, "bfloat16")
    equal = {name for name in tensors if files.equal(name, other, name)}
    assert equal == tensors.keys() - {"bfloat16", "float64"}
    assert not files.equal("float64", other, "zero")
