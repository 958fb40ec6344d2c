"""Models from disk or the Hub, one at a time in memory, whole."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.preflight.weight_files import has_safetensors, model_folder
from mergekit_collapse.states.adapters import adapter_applied
from mergekit_collapse.states.weights import fingerprint, require_complete, require_finite

logger = logging.getLogger(__name__)

# Any, since transformers has no types for these.
transformers_logging: Any = transformers.utils.logging

_DAMAGED = "a weight file may be damaged or missing, copy or download the model again"


@dataclass(frozen=True)
class LoadOptions:
    """How models are brought into memory.

    Attributes:
        device: as torch names it, such as ``cpu`` or ``cuda:0``.
        dtype: the precision of weights and forward passes.
        trust_remote_code: whether a model may bring Python code of its own.
        cache_dir: where the Hub's files are kept; None is the Hub's own default.
        progress: whether to show progress bars.
        max_memory: most bytes that may be taken where the models run: of all of this process on
            a processor, else of the device; None for as much as there is.
    """

    device: str
    dtype: torch.dtype
    trust_remote_code: bool = False
    cache_dir: str | None = None
    progress: bool = True
    max_memory: int | None = None


def choose_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32.

    On a CPU that merely emulates bfloat16 it is slower than float32 and less exact.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        # AMD's cards pass too: ROCm reports their generation, 9 and up, here.
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    elif kind == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    elif kind == "cpu":
        # Before torch had a public question, it had these two.
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = any(getattr(torch.cpu, name, bool)() for name in asked)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def each_model(
    references: Sequence[ModelReference],
    options: LoadOptions,
    visit: Callable[[int, Any], None],
) -> None:
    """Call ``visit(index, model)`` for every reference, with one model in memory at a time.

    References to one base, bare or with adapters, share one load of it, so the order of
    the calls is not that of the references. A callback and not a generator: a caller's
    loop variable would keep one model alive while the next is loaded.

    Raises:
        EvaluationError: a model cannot be loaded as it is; names it and what is wrong.
    """
    for group in _by_base(references):
        _visit_group(references, group, options, visit)


def read_config(reference: ModelReference, options: LoadOptions) -> Any:
    """The model's transformers configuration, with MergeKit's ``override_architecture``.

    Raises:
        EvaluationError: no such model, or a config.json that transformers does not know.
    """
    folder = model_folder(reference.model, options.cache_dir, options.trust_remote_code)
    mend = "check its config.json (--trust-remote-code if the model needs its own code)"
    with quiet(), told_as_evaluation_error(f"model {reference.model}", mend):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=options.trust_remote_code
        )
        if reference.override_architecture:
            config.architectures = [reference.override_architecture]
    return config


def bare(reference: ModelReference) -> ModelReference:
    """The model without its adapter."""
    return reference.model_copy(update={"lora": None})


def _by_base(references: Sequence[ModelReference]) -> list[list[int]]:
    """Indices of the references to one base, the bare base first while it is untouched."""
    groups: dict[ModelReference, list[int]] = {}
    for index, reference in enumerate(references):
        groups.setdefault(bare(reference), []).append(index)
    return [sorted(g, key=lambda i: references[i].lora is not None) for g in groups.values()]


def _visit_group(
    references: Sequence[ModelReference],
    group: list[int],
    options: LoadOptions,
    visit: Callable[[int, Any], None],
) -> None:
    model: Any = None
    pristine: dict[str, int] | None = None
    for index in group:
        reference = references[index]
        if model is None:
            model = _load(reference, options)
        if reference.lora is None:
            visit(index, model)
            continue
        if index != group[-1] and pristine is None:
            pristine = fingerprint(model)
        with adapter_applied(model, reference.lora, options.cache_dir):
            visit(index, model)
        if index != group[-1] and fingerprint(model) != pristine:
            logger.info("%s left traces in its base, which is loaded again", reference.lora)
            last, model = weakref.ref(model), None
            _release(last, options.device)
    last, model = weakref.ref(model), None
    _release(last, options.device)


def load_unchecked(reference: ModelReference, options: LoadOptions) -> tuple[Any, dict[str, Any]]:
    """One base model in evaluation mode, and what transformers says of loading it.

    The model may hold made-up weights: in the second, ``missing_keys``, ``mismatched_keys`` and
    ``unexpected_keys`` name what ``weights.require_complete`` would refuse.

    Raises:
        EvaluationError: no such model, or weights that cannot be read.
    """
    where = f"model {reference.model}"
    config = read_config(reference, options)
    folder = model_folder(reference.model, options.cache_dir, options.trust_remote_code)
    chosen = model_class(config, options, where)
    with quiet(), told_as_evaluation_error(where, _DAMAGED):
        model, loading = chosen.from_pretrained(
            str(folder),
            config=config,
            dtype=options.dtype,
            device_map=None if options.device == "cpu" else {"": options.device},
            use_safetensors=has_safetensors(folder),
            weights_only=True,
            trust_remote_code=options.trust_remote_code,
            # Shapes that differ are refused with the names, which transformers leaves out.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return model.eval(), loading


def _load(reference: ModelReference, options: LoadOptions) -> Any:
    """One base model, complete, finite, in evaluation mode."""
    where = f"model {reference.model}"
    model, loading = load_unchecked(reference, options)
    with told_as_evaluation_error(where, _DAMAGED):
        require_complete(where, loading)
        require_finite(where, model.state_dict().items())
    if unused := loading["unexpected_keys"]:
        names = shortened(sorted(unused))
        logger.warning("%s: no place in %s for %s", where, type(model).__name__, names)
    return model


def model_class(config: Any, options: LoadOptions, where: str) -> Any:
    """The class that the configuration names, as far as it is a model of transformers."""
    name = (getattr(config, "architectures", None) or [""])[0]
    own_code = getattr(config, "auto_map", None) or {}
    if options.trust_remote_code and own_code:
        for auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel"):
            if auto in own_code:
                return getattr(transformers, auto)
    named = getattr(transformers, name, None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    for auto_class in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        if type(config) in auto_class._model_mapping:
            logger.warning("%s: architecture %r read as %s", where, name, auto_class.__name__)
            return auto_class
    raise EvaluationError(
        f"{where}: transformers {transformers.__version__} knows no architecture {name!r}; upgrade"
        " transformers, or pass --trust-remote-code if the model brings code that you trust"
    )


def _release(last: Callable[[], Any], device: str) -> None:
    """Return a model's memory before the next is loaded."""
    # Seldom: transformers' own models hold no cycles, and a collection takes half a second.
    if last() is not None:
        gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars and load reports, which say what we say."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
