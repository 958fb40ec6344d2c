"""What a LoRA adapter changes in its base, tensor by tensor, without merging it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelPath
from mergekit.io.loader import TensorLoader

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.preflight.model_source import LocalFolder, read_json
from mergekit_collapse.preflight.weight_files import adapter_folder
from mergekit_collapse.states.shard_file import ShardFile

# Settings of PEFT's LoraConfig under which the change is not scaling·B·A.
_OTHER_FORMULAS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Ways to begin that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<factor>[AB])(\.weight)?")
_MEND = "merge it into its base with PEFT's merge_and_unload and name the merged model"


@dataclass(frozen=True)
class LoraUpdate:
    """The change of one weight, scaling · B · A.

    Attributes:
        down: A, rank × in.
        up: B, out × rank.
        scaling: α/r, or α/√r with rsLoRA.
        transposed: whether the weight is stored in × out, as embeddings and GPT-2's are.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    transposed: bool

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of the change as the weight is stored, in float64."""
        down, up = self.down.double(), self.up.double()
        if self.transposed:
            return self.scaling * (down[:, start:stop].T @ up.T)
        return self.scaling * (up[start:stop] @ down)


class LoraAdapter:
    """An adapter's files, read one factor pair at a time.

    Args:
        path: of the adapter.
        names: its base's names of the tensors, as values.
        cache_dir: of the Hub's files.

    Raises:
        EvaluationError: it is unreadable, does not fit the base, or changes it in another way
            than by adding scaling·B·A or by bringing whole tensors.
    """

    def __init__(self, path: ModelPath, names: Mapping[str, str], cache_dir: str | None) -> None:
        self.where = f"adapter {path}"
        folder = adapter_folder(path, cache_dir)
        self._config = read_json(LocalFolder(folder), "adapter_config.json")
        self._require_plain()
        with told_as_evaluation_error(self.where, "download it again"):
            self._tensor, keys = _opened(folder)
            self._sort(keys, frozenset(names.values()))

    @property
    def changed(self) -> frozenset[str]:
        """The base's names of the tensors that it changes."""
        return frozenset([*self._pairs, *self._whole])

    def whole(self, name: str) -> torch.Tensor | None:
        """The tensor that takes the place of the base's (``modules_to_save``, biases)."""
        return self._read(self._whole[name]) if name in self._whole else None

    def update(self, name: str, shape: Sequence[int]) -> LoraUpdate | None:
        """What is added to a tensor of the base.

        Raises:
            EvaluationError: the factors do not multiply to ``shape``.
        """
        if name not in self._pairs:
            return None
        module, embedding, keys = self._pairs[name]
        down, up = self._read(keys["A"]), self._read(keys["B"])
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise EvaluationError(
                f"{self.where}: the factors of {name} are {list(down.shape)} and {list(up.shape)}, "
                f"which is no linear layer or embedding; {_MEND}"
            )
        out, into = up.shape[0], down.shape[1]
        transposed = embedding or bool(self._config.get("fan_in_fan_out"))
        if out != into and not embedding:
            # PEFT, too, believes the layer and not the flag.
            transposed = list(shape) == [into, out]
        if list(shape) != ([into, out] if transposed else [out, into]):
            raise EvaluationError(
                f"{self.where}: changes {name} as {out} × {into}, but in the base it is "
                f"{list(shape)}; check that the adapter was trained on this base"
            )
        return LoraUpdate(down, up, self._scaling(module, down.shape[0]), transposed)

    def _scaling(self, module: str, rank: int) -> float:
        patterns: Any = self._config.get("alpha_pattern") or {}
        found = (p for p in patterns if re.match(rf"(.*\.)?({p})$", module))
        alpha = patterns.get(next(found, None), self._config.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _read(self, key: str) -> torch.Tensor:
        with told_as_evaluation_error(self.where, "download it again"):
            return self._tensor(key)

    def _require_plain(self) -> None:
        config = self._config
        if (kind := config.get("peft_type")) != "LORA":
            raise EvaluationError(f"{self.where}: is a {kind!r} adapter, not a LoRA; {_MEND}")
        other = [key for key in _OTHER_FORMULAS if config.get(key)]
        if other:
            raise EvaluationError(
                f"{self.where}: with {shortened(other)} its change is not scaling·B·A; {_MEND}"
            )
        if (beginning := config.get("init_lora_weights")) not in _BEGINNINGS:
            raise EvaluationError(
                f"{self.where}: began as {beginning!r}, which changes the base, too; {_MEND}"
            )

    def _sort(self, keys: Sequence[str], known: frozenset[str]) -> None:
        """Assign every tensor to one of the base's."""
        self._whole: dict[str, str] = {}
        self._pairs: dict[str, tuple[str, bool, dict[str, str]]] = {}
        for key in keys:
            target = key.removeprefix("base_model.model.")
            factor = _FACTOR.fullmatch(target)
            if factor is not None:
                module, embedding = factor["module"], factor["kind"] is not None
                name = name_in(f"{module}.weight", known)
            elif "lora_" in target or "trainable_tokens" in target:
                raise EvaluationError(
                    f"{self.where}: {target} belongs to no plain LoRA (DoRA, a bias or single "
                    f"tokens), whose change is not scaling·B·A; {_MEND}"
                )
            else:
                target = re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", target)
                name = name_in(target, known)
            if name is None:
                raise EvaluationError(
                    f"{self.where}: changes {target}, which not all models have in their files "
                    f"(where it is tied to another tensor, {_MEND})"
                )
            if factor is None:
                self._whole[name] = key
            else:
                pair = self._pairs.setdefault(name, (module, embedding, {}))
                pair[2][factor["factor"]] = key
        half = [name for name, (_, _, pair) in self._pairs.items() if len(pair) != 2]
        if half or not self.changed:
            lost = f"half of the pair for {shortened(half)}" if half else "all weights"
            raise EvaluationError(f"{self.where}: lacks {lost}; download it again")


def _opened(folder: Path) -> tuple[Callable[[str], torch.Tensor], list[str]]:
    """How to read a tensor of an adapter, and the names of all."""
    if (file := folder / "adapter_model.safetensors").exists():
        shard = ShardFile(file)
        return shard.tensor, sorted(shard.tensors)
    # Without MergeKit's own unpickler: torch's, restricted to weights.
    loader = TensorLoader.get(str(folder / "adapter_model.bin"), use_lazy_unpickle=False)
    return loader.get_tensor, sorted(loader.keys())


def name_in(target: str, names: frozenset[str]) -> str | None:
    """A model's own name for a tensor; checkpoints may lack or add a prefix."""
    if target in names:
        return target
    ends = [n for n in names if n.endswith(f".{target}") or target.endswith(f".{n}")]
    return ends[0] if len(ends) == 1 else None
