"""Task vectors from disk, one tensor of every model in memory at a time."""

import math
from collections.abc import Mapping, Sequence

import torch
from mergekit.common import ModelPath, ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.parameters.conflict import ConflictSums
from mergekit_collapse.preflight.weight_files import model_folder
from mergekit_collapse.states.lora_update import LoraAdapter, LoraUpdate, name_in
from mergekit_collapse.states.weights import require_finite

# Buffers that some versions of transformers save, and no merge touches.
_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".position_ids", ".num_batches_tracked")
# One row per token.
_BY_TOKEN = (
    "embed_tokens",
    "embed_in",
    "word_embeddings",
    "wte",
    "shared",
    "lm_head",
    "embed_out",
    "decoder",
    "predictions",
)
_MEND = "check that its files are whole, or download it again"

# The tensor that a model has, and what its adapter adds to it.
Part = tuple[torch.Tensor, LoraUpdate | None]


class TaskVectors:
    """θ_i − θ_0 of every expert, tensor by tensor.

    Attributes:
        names: the base's names of the tensors that all models have.
        notes: what was left out, and what was taken for the same.

    Raises:
        EvaluationError: a model is unreadable, or has nothing in common with the others.
    """

    def __init__(
        self,
        references: Sequence[ModelReference],
        base: ModelReference,
        cache_dir: str | None,
        trust_remote_code: bool,
    ) -> None:
        self.notes: list[str] = []
        self._all = [base, *references]
        self._loaders: dict[ModelPath, LazyTensorLoader] = {}
        for path in dict.fromkeys(reference.model for reference in self._all):
            folder = model_folder(path, cache_dir, trust_remote_code)
            with told_as_evaluation_error(f"model {path}", _MEND):
                # Not MergeKit's own unpickler but torch's, restricted to weights.
                loader = LazyTensorLoader.from_disk(str(folder), lazy_unpickle=False)
            self._loaders[path] = loader
        self._own_names = self._matched()
        self.names = list(next(iter(self._own_names.values())))
        self._adapters: dict[ModelReference, LoraAdapter] = {}
        for reference in self._all:
            if reference.lora is not None and reference not in self._adapters:
                own = self._own_names[reference.model]
                self._adapters[reference] = LoraAdapter(reference.lora, own, cache_dir)

    def add(self, name: str, sums: ConflictSums, chunk: int) -> None:
        """Add one tensor to the sums, a chunk at a time.

        Raises:
            EvaluationError: it is quantized, not finite, or its shapes do not fit.
        """
        stored = {}
        for path, loader in self._loaders.items():
            with told_as_evaluation_error(f"model {path}", _MEND):
                stored[path] = loader.get_tensor(self._own_names[path][name])
        # Masks and position numbers, which nothing trains.
        if all(tensor.dtype in (torch.bool, torch.int64) for tensor in stored.values()):
            self.notes.append(f"left out, since it holds no weights: {name}")
            return
        parts = [self._part(reference, name, stored[reference.model]) for reference in self._all]
        shape = self._common_shape(name, [tensor for tensor, _ in parts])
        tensors = {id(tensor) for tensor, _ in parts}
        if len(tensors) == 1 and all(update is None for _, update in parts):
            sums.skip(math.prod(shape))
            return
        # Where all adapt one tensor, its values do not matter.
        if len(tensors) > 1:
            seen = {
                id(tensor): (r, tensor) for r, (tensor, _) in zip(self._all, parts, strict=True)
            }
            for reference, tensor in seen.values():
                require_finite(f"model {reference}", [(name, tensor)])
        step = max(1, chunk // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], step):
            sums.add(_chunk(parts, start, min(start + step, shape[0])))

    def _part(self, reference: ModelReference, name: str, stored: torch.Tensor) -> Part:
        own = self._own_names[reference.model][name]
        adapter = self._adapters.get(reference)
        update = None if adapter is None else adapter.update(own, stored.shape)
        if update is not None:
            pair = [(f"{name} (lora_A)", update.down), (f"{name} (lora_B)", update.up)]
            require_finite(f"model {reference}", pair)
        whole = None if adapter is None else adapter.whole(own)
        tensor = stored if whole is None else whole
        # Bytes and 8-bit floats have their scales in other tensors.
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise EvaluationError(
                f"model {reference}: {name} is stored as {tensor.dtype}, quantized; name the "
                "original model, whose weights are floating-point numbers"
            )
        return (tensor if tensor.ndim else tensor.reshape(1)), update

    def _common_shape(self, name: str, tensors: Sequence[torch.Tensor]) -> list[int]:
        shapes = [list(tensor.shape) for tensor in tensors]
        if all(shape == shapes[0] for shape in shapes):
            return shapes[0]
        if all(s[1:] == shapes[0][1:] for s in shapes) and name.rpartition(".")[0].endswith(
            _BY_TOKEN
        ):
            rows = sorted({shape[0] for shape in shapes})
            self.notes.append(
                f"{name} has {' or '.join(map(str, rows))} rows; the first {rows[0]} are compared, "
                "taken to be of the same tokens"
            )
            return [rows[0], *shapes[0][1:]]
        listed = (f"{list(s)} in {r}" for r, s in zip(self._all, shapes, strict=True))
        raise EvaluationError(
            f"{name} is {shortened(listed)}; compare models of one size, grown from one base"
        )

    def _matched(self) -> Mapping[ModelPath, Mapping[str, str]]:
        """For every model its own names of the tensors that all have, by the base's names."""
        held = {
            path: [n for n in loader.index.tensor_paths if not n.endswith(_BUFFERS)]
            for path, loader in self._loaders.items()
        }
        first = next(iter(held.values()))
        matched: dict[ModelPath, dict[str, str]] = {}
        for path, names in held.items():
            own = frozenset(names)
            found = {name: name_in(name, own) for name in first}
            matched[path] = {name: mine for name, mine in found.items() if mine is not None}
        common = [name for name in first if all(name in m for m in matched.values())]
        if not common:
            models = shortened(map(str, held))
            raise EvaluationError(f"{models} have no tensor in common; merge models of one base")
        matched = {path: {name: m[name] for name in common} for path, m in matched.items()}
        rest = dict.fromkeys(
            name for path, names in held.items() for name in names
            if name not in set(matched[path].values())
        )  # fmt: skip
        if rest:
            self.notes.append(f"left out, since not all models have them: {shortened(rest)}")
        return matched


def _chunk(parts: Sequence[Part], start: int, stop: int) -> torch.Tensor:
    """Task vectors of some rows, expert × element, float64; the base's part comes first."""
    base, base_update = parts[0]
    origin = base[start:stop].double()
    taken = None if base_update is None else base_update.rows(start, stop)
    vectors = torch.zeros(len(parts) - 1, origin.numel(), dtype=torch.float64)
    for vector, (tensor, update) in zip(vectors, parts[1:], strict=True):
        rows = vector.view(origin.shape)
        if tensor is not base:
            torch.sub(tensor[start:stop].double(), origin, out=rows)
        if update is not None:
            rows += update.rows(start, stop)
        if taken is not None:
            rows -= taken
    return vectors
