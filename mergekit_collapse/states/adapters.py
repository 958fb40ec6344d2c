"""PEFT adapters on a model that is in memory already, and off again."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
from mergekit.common import ModelPath

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.preflight.weight_files import adapter_folder
from mergekit_collapse.states.weights import require_finite

# Unlike any tensor's own name, so that it tells an adapter's tensors from the base's.
_NAME = "mergekit_collapse_adapter"


@contextmanager
def adapter_applied(model: Any, path: ModelPath, cache_dir: str | None) -> Iterator[None]:
    """Within the block, ``model`` answers as it would with the adapter merged in.

    The layers are swapped in place and swapped back. Some adapters leave traces all the
    same (trained biases, embeddings, PiSSA), so compare ``weights.fingerprint``.

    Raises:
        EvaluationError: unreadable, incomplete, not finite, or made for another base.
    """
    folder = adapter_folder(path, cache_dir)
    where = f"adapter {path} on {model.config.name_or_path}"
    mend = "check that the adapter was trained on this base model and download it again"
    with told_as_evaluation_error(where, mend), warnings.catch_warnings():
        # PEFT warns of what is checked, and refused, below.
        warnings.simplefilter("ignore")
        # safetensors, or torch's unpickler restricted to weights.
        tensors = peft.utils.load_peft_weights(str(folder), device="cpu")
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise EvaluationError(
                f"{where}: {config.peft_type} has no weights that can be merged; use a LoRA"
            )
        config.inference_mode = True
        require_finite(where, tensors.items())
        wrapped = peft.PeftModel(model, config, adapter_name=_NAME)
        try:
            outcome: Any = peft.set_peft_model_state_dict(wrapped, tensors, adapter_name=_NAME)
        except RuntimeError as error:
            raise RuntimeError(str(error).replace(f".{_NAME}", "")) from error
        wrapped.eval()
    # The base's own tensors are all "missing" from an adapter.
    missing = [key for key in outcome.missing_keys if _NAME in key]
    for fault, keys in (
        ("the adapter lacks", missing),
        ("the base has no place for", outcome.unexpected_keys),
    ):
        if keys:
            names = shortened(sorted(key.replace(f".{_NAME}", "") for key in keys))
            raise EvaluationError(f"{where}: {fault} {names}; {mend}")
    try:
        yield
    finally:
        with told_as_evaluation_error(where, mend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Delete first: unload() would leave the adapter's modules_to_save in the model.
            wrapped.delete_adapter(_NAME)
            wrapped.unload()
