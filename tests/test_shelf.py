"""Tensors that waited on disk are the same, bit for bit."""

import errno
import tempfile

import pytest
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.watch.shelf import Shelf

TENSORS = [
    torch.randn(3, 4, dtype=torch.bfloat16),
    torch.tensor(2.5),
    torch.zeros(0, 4),
    torch.arange(5),
    torch.randn(4, 6, dtype=torch.float64).T,
    torch.tensor([float("nan"), -0.0, float("inf")]),
]


def test_every_tensor_comes_back_in_any_order_and_more_than_once():
    shelf = Shelf()
    waiting = [shelf.put(tensor) for tensor in TENSORS]
    for tensor, shelved in [*zip(TENSORS, waiting, strict=True)][::-1] * 2:
        found = shelved.take()
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
        assert found.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or (
            not tensor.numel()
        )


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf()
    assert torch.equal(shelf.put(TENSORS[0]).take(), TENSORS[0])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(EvaluationError, match=r"No space left on device; .* TMPDIR"):
        Shelf().put(TENSORS[0])
