"""Checks on a finished merge: that it is whole, sound and alive, before it is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelPath, ModelReference, dtype_from_name
from tokenizers import Tokenizer

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.generation import generates
from mergekit_collapse.evaluation.merged_files import (
    TensorSurvey,
    incompleteness,
    survey,
    tokenizer_note,
)
from mergekit_collapse.findings import printable, shortened
from mergekit_collapse.preflight.model_source import LocalFolder, read_json
from mergekit_collapse.preflight.tokenizer_files import tokenizer_digest
from mergekit_collapse.preflight.tokenizers_agree import load_tokenizer
from mergekit_collapse.states.loader import LoadOptions, load_unchecked


@dataclass(frozen=True)
class Check:
    """One question to a merge: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


def check_merge(
    folder: Path, *, dtype: str | None, load_options: LoadOptions
) -> tuple[tuple[Check, ...], Any | None]:
    """``complete``, ``finite``, ``dtype``, ``keys``, ``vocabulary`` and ``generates``, as far as
    each can be asked: an incomplete folder is not read, and a model that does not load whole
    is not made to speak.

    Args:
        folder: one that passed ``merged_files.require_merge``.
        dtype: what the recipe asks for, ``out_dtype`` or else ``dtype``; None if it asks for
            nothing.
        load_options: how to bring the model into memory.

    Returns:
        The checks, and the model, loaded once, if it is whole and finite; else None.
    """
    if (missing := incompleteness(folder)) is not None:
        return (Check("complete", False, printable(missing)),), None
    checks = [Check("complete", True, f"all its files are there, {tokenizer_note(folder)}")]
    try:
        seen = survey(folder)
    except EvaluationError as error:
        return (*checks, Check("finite", False, str(error))), None
    checks += [_finite(seen), _dtype(seen, dtype, folder)]
    reference = ModelReference(model=ModelPath(path=str(folder)))
    try:
        model, loading = load_unchecked(reference, load_options)
    except EvaluationError as error:
        return (*checks, Check("keys", False, str(error))), None
    checks.append(_keys(loading))
    tokenizer, complaint = _tokenizer(folder, reference, load_options)
    largest = _largest_token(folder, tokenizer) if tokenizer is not None else None
    checks.append(_vocabulary(model, loading, largest, complaint))
    sound = all(check.passed for check in checks if check.name in ("finite", "keys"))
    if sound:
        checks.append(Check("generates", *generates(model, tokenizer)))
    return tuple(checks), model if sound else None


def _finite(seen: TensorSurvey) -> Check:
    if seen.not_finite:
        names = shortened(seen.not_finite)
        return Check("finite", False, f"NaN or infinite values in {names}")
    return Check("finite", True, f"no NaN and no infinity in {seen.tensors} tensors")


def _dtype(seen: TensorSurvey, wanted: str | None, folder: Path) -> Check:
    found = ", ".join(sorted(f"{_name(k)} ({len(v)} tensors)" for k, v in seen.by_dtype.items()))
    if wanted is None:
        config = read_json(LocalFolder(folder), "config.json")
        said = config.get("dtype") or config.get("torch_dtype")
        return Check(
            "dtype", True, printable(f"{found}; the recipe asks for none, config.json says {said}")
        )
    due = dtype_from_name(wanted)
    others = [name for kind, names in seen.by_dtype.items() if kind != due for name in names]
    if others:
        return Check("dtype", False, f"{wanted} was asked for, but {shortened(others)}: {found}")
    return Check("dtype", True, found)


def _keys(loading: dict[str, Any]) -> Check:
    # BERT's pooler is absent from many checkpoints and no hidden state goes through it.
    missing = [key for key in loading["missing_keys"] if "pooler" not in key.split(".")]
    faults = {
        "missing": sorted(missing),
        "unexpected": sorted(loading["unexpected_keys"]),
        "of another shape": [
            f"{name} ({list(got)}, not {list(due)})"
            for name, got, due in sorted(loading["mismatched_keys"])
        ],
    }
    told = [f"{fault}: {shortened(map(printable, keys))}" for fault, keys in faults.items() if keys]
    return Check("keys", not told, "; ".join(told) or "every tensor has its place")


def _tokenizer(
    folder: Path, reference: ModelReference, options: LoadOptions
) -> tuple[Any | None, str | None]:
    """The merge's tokenizer; None without one, and what is wrong with one that is there."""
    try:
        if tokenizer_digest(LocalFolder(folder)) is None:
            return None, None
        return load_tokenizer(reference, trust_remote_code=options.trust_remote_code), None
    except EvaluationError as error:
        return None, str(error)


def _largest_token(folder: Path, tokenizer: Any) -> int:
    """The largest id that the tokenizer's files know.

    transformers makes up a special token that a model's family has and the files lack; no text
    is ever encoded as that one.
    """
    source = LocalFolder(folder)
    if not source.has("tokenizer.json"):
        return int(max(tokenizer.get_vocab().values()))
    ids = set(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values())
    if source.has("tokenizer_config.json"):
        added = read_json(source, "tokenizer_config.json").get("added_tokens_decoder")
        ids.update(map(int, added if isinstance(added, dict) else ()))
    return max(ids)


def _vocabulary(
    model: Any, loading: dict[str, Any], largest: int | None, complaint: str | None
) -> Check:
    """Embeddings, head, config.json and tokenizer count the same tokens."""
    # Where shapes differ, the model in memory has those of config.json.
    on_disk = {name: got[0] for name, got, _ in loading["mismatched_keys"]}
    names = {id(tensor): name for name, tensor in model.named_parameters()}

    def rows(layer: Any) -> int:
        return int(on_disk.get(names.get(id(layer.weight), ""), layer.weight.shape[0]))

    embedded = rows(model.get_input_embeddings())
    head = model.get_output_embeddings()
    said = getattr(model.config.get_text_config(), "vocab_size", None)
    faults = [complaint] if complaint else []
    if said is not None and said != embedded:
        faults.append(f"config.json says {said} tokens, the embeddings have {embedded}")
    if head is not None and rows(head) != embedded:
        faults.append(f"the head has {rows(head)} tokens, the embeddings have {embedded}")
    if largest is not None and largest >= embedded:
        faults.append(
            f"the tokenizer has the token {largest}, but there are embeddings for {embedded} only"
        )
    if faults:
        return Check("vocabulary", False, "; ".join(faults))
    known = "no tokenizer" if largest is None else f"the tokenizer's largest token is {largest}"
    return Check("vocabulary", True, f"{embedded} embeddings; {known}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
