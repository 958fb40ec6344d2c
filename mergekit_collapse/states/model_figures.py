"""A model's figures, from its configuration and the names and shapes of its tensors."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_collapse.preflight.checkpoint import read_checkpoint
from mergekit_collapse.preflight.model_source import LocalFolder
from mergekit_collapse.preflight.tensor_headers import read_header
from mergekit_collapse.preflight.weight_files import model_folder
from mergekit_collapse.states.figures import ModelFigures, Stage
from mergekit_collapse.states.forward import depth, has_language_head
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.layered_files import LayeredFiles
from mergekit_collapse.states.loader import LoadOptions, model_class

# Matrices whose rows are looked up and multiplied with nothing.
_TABLES = re.compile(
    r"(^|\.)(wte|wpe|shared|embed_\w+|\w*embeddings?|relative_attention_bias)\.weight$"
)
# Of an encoder-decoder's decoder, what is given the encoder's states.
_CROSS = re.compile(r"(EncDecAttention|encoder_attn)\.(k|v|k_proj|v_proj)\.weight$")


@dataclass(frozen=True)
class TensorFigure:
    """One stored tensor."""

    shape: tuple[int, ...]
    nbytes: int


Tensors = Mapping[str, TensorFigure]


def layered_figures(files: LayeredFiles) -> ModelFigures:
    """Of a model whose layers run one at a time; nothing but headers was read of it."""
    stored = files.staged.files
    stages = [
        {name: TensorFigure(stored.shape(name), stored.nbytes(name)) for name in stage}
        for stage in files.staged.stages
    ]
    return staged_figures(files.config, files.opened, stages, files.options)


def staged_figures(
    config: Any, layered: LayeredModel, stages: Sequence[Tensors], options: LoadOptions
) -> ModelFigures:
    """The same from shapes alone.

    Args:
        stages: tensors of embeddings, layers 1 to L, and norm and head.
    """
    text, model = config.get_text_config(), layered.model
    size, rows = options.dtype.itemsize, _rows(text)
    vocabulary = rows if has_language_head(model) else 0
    share = _expert_share(text)
    found = []
    for place, tensors in enumerate(stages):
        inside = 0 < place <= layered.depth
        counted = tensors if inside or (place and vocabulary) else {}
        matrices = sum(_entries(name, t, rows, share) for name, t in counted.items())
        found.append(_stage(tensors, size, matrices=matrices, attentions=int(inside)))
    eager = getattr(model.config, "_attn_implementation", "eager") in (None, "eager")
    return ModelFigures(
        stages=tuple(found),
        hidden=text.hidden_size,
        attended=_attended(text),
        intermediate=_widest(t for tensors in stages[1:-1] for t in tensors.items()),
        vocabulary=vocabulary,
        scored=_heads(text) if eager else 0,
        itemsize=size,
    )


def whole_figures(reference: Any, config: Any, options: LoadOptions) -> ModelFigures:
    """Of a model that is loaded whole.

    Where only the weights would tell shapes (pickles), its products are taken from its size.

    Raises:
        EvaluationError: there is no such model, or a file is truncated.
    """
    tensors = _stored(reference, config, options)
    text = config.get_text_config(decoder=bool(config.is_encoder_decoder))
    size, rows, share = options.dtype.itemsize, _rows(text), _expert_share(text)
    counts = {"input": 0, "decoder": 0}
    for name, tensor in tensors.items():
        decoded = "decoder." in name and config.is_encoder_decoder and not _CROSS.search(name)
        counts["decoder" if decoded else "input"] += _entries(name, tensor, rows, share)
    layers = depth(config)
    attentions = {"attentions": layers}
    if config.is_encoder_decoder:
        encoder = int(getattr(text, "encoder_layers", None) or config.num_hidden_layers)
        attentions = {"decoder_attentions": layers, "cross_attentions": layers}
        attentions["attentions"] = encoder
    stage = _stage(
        tensors,
        size,
        matrices=counts["input"],
        decoder_matrices=counts["decoder"],
        **attentions,
    )
    kind: Any = model_class(config, options, f"model {reference.model}")
    return ModelFigures(
        stages=(stage,),
        hidden=text.hidden_size,
        attended=_attended(text),
        intermediate=_widest(i for i in tensors.items() if i[1].shape[:1] != (rows,)),
        vocabulary=rows if getattr(kind, "can_generate", bool)() else 0,
        # Whether it writes its scores out is seen when it is built; most do not.
        scored=0 if getattr(kind, "_supports_sdpa", False) else _heads(text),
        itemsize=size,
    )


def _stored(reference: Any, config: Any, options: LoadOptions) -> Tensors:
    folder = model_folder(reference.model, options.cache_dir, options.trust_remote_code)
    checkpoint = read_checkpoint(LocalFolder(folder))
    if checkpoint.shard_of is not None:
        headers = {name: read_header(folder / name) for name in set(checkpoint.shard_of.values())}
        return {
            name: TensorFigure(t.shape, t.end - t.begin)
            for name, shard in checkpoint.shard_of.items()
            for t in [headers[shard].tensors[name]]
        }
    nbytes = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))
    kept = getattr(config, "dtype", None)
    width = config.get_text_config().hidden_size
    entries = nbytes // (kept.itemsize if kept is not None else 4)
    return {"weights": TensorFigure((entries // width, width), nbytes)}


def _stage(tensors: Tensors, size: int, **counts: int) -> Stage:
    stored = sum(tensor.nbytes for tensor in tensors.values())
    entries = sum(math.prod(tensor.shape) for tensor in tensors.values())
    converted = any(t.nbytes != size * math.prod(t.shape) for t in tensors.values())
    return Stage(stored, size * entries, entries, converted, **counts)


def _entries(name: str, tensor: TensorFigure, rows: int, share: float) -> int:
    """Entries that a token is multiplied with; those as high as the vocabulary are the head's."""
    shape, experts = tensor.shape, ".experts." in name
    if len(shape) != 2 + (experts and len(shape) == 3) or _TABLES.search(name):
        return 0
    if shape[0] == rows:
        return 0
    return round(math.prod(shape) * (share if experts else 1))


def _expert_share(text: Any) -> float:
    """Of a mixture, how many of its experts a token goes through."""
    used = getattr(text, "num_experts_per_tok", None)
    every = next(
        (n for key in ("num_experts", "num_local_experts", "n_routed_experts")
         if (n := getattr(text, key, None))),
        None,
    )  # fmt: skip
    return used / every if used and every else 1.0


def _rows(text: Any) -> int:
    return int(text.vocab_size)


def _attended(text: Any) -> int:
    heads = _heads(text)
    return heads * int(getattr(text, "head_dim", None) or text.hidden_size // max(1, heads))


def _heads(text: Any) -> int:
    """Of attention; state-space models have none, and some models say them layer by layer."""
    found = getattr(text, "num_attention_heads", None) or 0
    return max(found) if isinstance(found, Sequence) else int(found)


def _widest(tensors: Iterable[tuple[str, TensorFigure]]) -> int:
    """Width of the widest product: of what a token is multiplied with, the longest side."""
    sides = (max(t.shape) for name, t in tensors if len(t.shape) == 2 and not _TABLES.search(name))
    return max(sides, default=0)
