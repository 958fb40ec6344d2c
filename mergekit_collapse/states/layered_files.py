"""A model folder whose layers can be read and run one at a time."""

import json
import re
from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.findings import shortened
from mergekit_collapse.preflight.weight_files import model_folder
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import has_language_head
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.loader import LoadOptions, read_config
from mergekit_collapse.states.lora_update import LoraAdapter
from mergekit_collapse.states.stage_tensors import StagedFiles, sort_by_stage
from mergekit_collapse.states.tensor_files import TensorFiles

# Of a configuration, what does not change the computation.
_TOLD = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True)
class LayeredFiles:
    """What is known of a model before any of its weights is read.

    Attributes:
        where: which model, the beginning of every message.
        config: of transformers.
        options: device and precision of the forward passes.
        opened: the model without weights, its head run where it has one.
        staged: its files.
    """

    where: str
    config: Any
    options: LoadOptions
    opened: LayeredModel
    staged: StagedFiles

    @property
    def model(self) -> Any:
        """transformers' own."""
        return self.opened.model

    @property
    def head(self) -> bool:
        """Whether it gives a distribution of the next token."""
        return has_language_head(self.model)

    @property
    def shape(self) -> str:
        """The same for models that one forward pass can run; their weights may differ."""
        return json.dumps([type(self.model).__name__, computation(self.config)])

    def adapter(self, path: ModelPath) -> LoraAdapter:
        """An adapter for this model.

        Raises:
            EvaluationError: it is broken, made for another model, or no plain LoRA.
        """
        names = {name: name for stage in self.staged.stages for name in stage}
        return LoraAdapter(path, names, self.options.cache_dir)

    def starts_like(self, other: "LayeredFiles", *, surely: bool) -> bool:
        """Whether embeddings and first layer are the same: others have nothing to share.

        Args:
            surely: whether to read them; a few bytes tell nearly all models apart.
        """
        if self is other:
            return True
        if brings_code(self.config):
            return False
        equal = self.staged.equals if surely else self.staged.may_equal
        return self.shape == other.shape and all(equal(other.staged, k) for k in (0, 1))

    def layered(self, batches: Sequence[Batch], *, answers: bool) -> LayeredModel:
        """The model for some batches."""
        if answers == self.head:
            return self.opened.afresh(self.where, batches)
        return LayeredModel(self.config, self.options, self.where, batches, answers)


def open_layered_files(
    reference: ModelReference,
    options: LoadOptions,
    batch: Batch,
    built: MutableMapping[str, LayeredModel],
) -> LayeredFiles:
    """Look at a base model; an adapter's name is not read.

    Args:
        batch: any, to see by how the model runs.
        built: models by configuration, for others of the same one; this one is added.

    Raises:
        NotLayeredError: the model, or the way in which it is stored, has to be read whole.
        EvaluationError: there is no such model, or a file is truncated.
    """
    where = f"model {reference.model}"
    config = read_config(reference, options)
    if getattr(config, "quantization_config", None) is not None:
        raise NotLayeredError("it is quantized")
    files = TensorFiles(model_folder(reference.model, options.cache_dir, options.trust_remote_code))
    key = None if brings_code(config) else computation(config)
    if key is not None and key in built:
        layered = built[key].afresh(where, [batch])
    else:
        layered = LayeredModel(config, options, where, [batch], answers=None)
    if missing := layered.missing(files.names):
        raise NotLayeredError(f"its files lack {shortened(missing)}")
    ignored = getattr(layered.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    homeless = [n for n in sorted(files.names) if not layered.stages_of(n)]
    odd = [n for n in homeless if not any(re.search(pattern, n) for pattern in ignored)]
    if odd:
        # The loader knows other names for tensors, and says what it has no place for.
        raise NotLayeredError(f"its files hold {shortened(odd)}")
    if key is not None:
        built[key] = layered
    staged = sort_by_stage(where, files, layered.stages_of, layered.depth + 2)
    return LayeredFiles(where, config, options, layered, staged)


def brings_code(config: Any) -> bool:
    """Whether the model brings code, which may be other code under the same name."""
    return bool(getattr(config, "auto_map", None))


def computation(config: Any, besides: Collection[str] = ()) -> str:
    """What of a configuration decides how a model computes.

    Args:
        besides: further keys to leave out.
    """
    told = {k: v for k, v in config.to_dict().items() if k not in (*_TOLD, *besides)}
    return json.dumps([type(config).__name__, told], sort_keys=True, default=str)
