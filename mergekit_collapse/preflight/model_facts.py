"""What a model's files say of it, with no weight read: the facts that a merge depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergekit.architecture import WeightInfo, arch_info_for_config
from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.adapter_files import AdapterFacts, read_adapter
from mergekit_collapse.preflight.checkpoint import Checkpoint, no_weights, read_checkpoint
from mergekit_collapse.preflight.model_config import load_config, settings_of
from mergekit_collapse.preflight.model_source import ModelSource, open_source, read_json
from mergekit_collapse.preflight.tokenizer_files import chat_template, tokenizer_digest

# Rows of these are tokens. MergeKit's definition says it better where it has one.
_EMBEDDING_SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


@dataclass(frozen=True)
class ModelFacts:
    """One model as its files describe it. Sizes that its config lacks are None.

    Attributes:
        reference: as in the recipe, ``base+adapter`` for a LoRA.
        layers_by_module: layer count for each of MergeKit's modules of this architecture.
        embedding_rows: rows of the input embedding, from the header.
        settings: every value of the config that can change what the model computes.
        weights: the tensors that MergeKit's own definition of the architecture asks for;
            None where it has none and goes by the names in the files.
        quantization: the method of a quantised checkpoint, such as ``gptq``.
        tokenizer_digest: equal digests mean equal token ids; None without a tokenizer.
        also_called: other names of the base model, by which an adapter may know it.
    """

    reference: str
    architecture: str
    model_type: str
    hidden_size: int | None
    layers: int | None
    layers_by_module: Mapping[str, int]
    heads: int | None
    kv_heads: int | None
    intermediate_size: int | None
    vocab_size: int | None
    embedding_rows: int | None
    tied_embeddings: bool
    settings: Mapping[str, Any]
    weights: tuple[WeightInfo, ...] | None
    checkpoint: Checkpoint
    quantization: str | None
    tokenizer_digest: str | None
    chat_template: str | None
    adapter: AdapterFacts | None
    also_called: tuple[str, ...]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes of the tensors, the one with most bytes first."""
        held = self.checkpoint.bytes_of_dtype
        return tuple(sorted(held, key=lambda dtype: (-held[dtype], dtype)))

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...] | None] | None:
        """Shape by tensor name, where known."""
        return self.checkpoint.shapes


def read_model(
    reference: ModelReference, *, cache_dir: str | None = None, trust_remote_code: bool = False
) -> ModelFacts:
    """Read a model's configuration, headers, tokenizer files and adapter.

    Raises:
        EvaluationError: it cannot be found, read or understood; says what and where.
    """
    source = open_source(reference.model, cache_dir)
    _check_folder(source)
    raw = read_json(source, "config.json")
    config = load_config(reference, source, raw, cache_dir, trust_remote_code)
    architecture = (config.architectures or [""])[0]  # load_config lets only one pass
    text = config.get_text_config()
    checkpoint = read_checkpoint(source)
    weights, layers_by_module = _definition(source, config)
    quantization = raw.get("quantization_config")
    return ModelFacts(
        reference=str(reference),
        architecture=architecture,
        model_type=config.model_type,
        hidden_size=_count(text, "hidden_size"),
        layers=_count(text, "num_hidden_layers"),
        layers_by_module=layers_by_module,
        heads=_count(text, "num_attention_heads"),
        kv_heads=_count(text, "num_key_value_heads"),
        intermediate_size=_count(text, "intermediate_size"),
        vocab_size=_count(text, "vocab_size"),
        embedding_rows=_embedding_rows(weights, checkpoint.shapes or {}),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        settings=settings_of(config),
        weights=weights,
        checkpoint=checkpoint,
        quantization=_quantization(quantization) if quantization else None,
        tokenizer_digest=tokenizer_digest(source),
        chat_template=chat_template(source),
        adapter=None if reference.lora is None else read_adapter(reference.lora, cache_dir),
        also_called=tuple(n for n in (raw.get("_name_or_path"),) if isinstance(n, str) and n),
    )


def with_adapter(
    base: ModelFacts, reference: ModelReference, *, cache_dir: str | None = None
) -> ModelFacts:
    """Facts of ``base+adapter`` where the base has been read, as many adapters share one.

    Raises:
        EvaluationError: the adapter cannot be found, read or understood.
    """
    assert reference.lora is not None
    adapter = read_adapter(reference.lora, cache_dir)
    return replace(base, reference=str(reference), adapter=adapter)


def _check_folder(source: ModelSource) -> None:
    """A folder that holds something else than one model is said before anything is read."""
    names = source.files()
    weights = any(n.startswith(("model.safetensors", "pytorch_model.bin")) for n in names)
    if "adapter_config.json" in names and weights:
        raise EvaluationError(
            f"{source.where}: holds both a model and an adapter, and MergeKit would merge the "
            "model without it; move the adapter to a folder of its own and write base+adapter"
        )
    if "adapter_config.json" in names:
        raise EvaluationError(
            f"{source.where}: is a LoRA adapter, not a model; write it behind its base, "
            "as in base+adapter"
        )
    if "config.json" in names:
        return
    if any(name.lower().endswith(".gguf") for name in names):
        raise EvaluationError(no_weights(source))
    held = f"only {len(names)} other files" if names else "nothing at all"
    raise EvaluationError(
        f"{source.where}: has no config.json, {held}; name a folder that save_pretrained wrote, "
        "or a hub model of transformers"
    )


def _definition(
    source: ModelSource, config: Any
) -> tuple[tuple[WeightInfo, ...] | None, dict[str, int]]:
    """What MergeKit's definition of the architecture says of this model, if it has one."""
    try:
        known = arch_info_for_config(config)
        if known is None:
            return None, {}
        layers = {
            name: int(module.architecture.num_layers(config))
            for name, module in known.modules.items()
        }
        return tuple(known.all_weights(config)), layers
    # The definition asks a config for keys, which one written by hand may lack.
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        raise EvaluationError(
            f"{source.where}: config.json lacks what MergeKit needs for "
            f"{config.architectures[0]}: {problem}; complete it"
        ) from problem


def _embedding_rows(
    weights: tuple[WeightInfo, ...] | None, shapes: Mapping[str, tuple[int, ...] | None]
) -> int | None:
    by_token = [w for w in weights or () if w.vocabulary_axis == 0]
    names = [n for w in by_token for n in (w.name, *(w.aliases or ()), *(w.tied_names or ()))]
    names += [n for n in shapes if n.endswith(_EMBEDDING_SUFFIXES)]
    found = (shapes.get(name) for name in names)
    return next((shape[0] for shape in found if shape is not None and len(shape) == 2), None)


def _count(config: Any, key: str) -> int | None:
    value = getattr(config, key, None)
    return value if type(value) is int else None


def _quantization(value: Any) -> str:
    return str(value.get("quant_method", "unnamed")) if isinstance(value, dict) else "unnamed"
