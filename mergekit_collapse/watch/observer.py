"""A merged model run on the probes a stage at a time, and read beside its experts."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.io.tasks import SaveTensor

from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.evaluation.scoring import Scorer
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.material import Material
from mergekit_collapse.states.arrays import StateArrays
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.forward import Outputs
from mergekit_collapse.states.heap import keep_freed_memory
from mergekit_collapse.states.hidden_states import default_batch_tokens, resolve_layers
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.model_states import NOT_ASKED, ModelRecorder
from mergekit_collapse.states.profiles import LayerProfile
from mergekit_collapse.states.skeleton import NotLayeredError
from mergekit_collapse.watch.shelf import Shelf, Shelved

MERGED = "merged model"
# What embeddings may take that are only waiting for the head; those of small models do not
# leave memory.
SHARED_LIMIT = 2**28


class NotFiniteError(Exception):
    """States or answers of the merged model that are no numbers, and the layer they follow."""

    def __init__(self, layer: int, what: str) -> None:
        super().__init__(f"{what} are NaN or infinite")
        self.layer = layer


class Observer:
    """Runs each stage of one merged model; stages come in order, each with all its tensors, but for
    those that both ends share, which come with the first.

    Args:
        material: the experts.
        config: of the merged model.
        saves: the tensors that MergeKit is going to make.
        scoring: whether tasks are scored as well, which takes as long again.

    Attributes:
        depth: L of the merged model; stage 0 is the embeddings, L + 1 the norm and the head.

    Raises:
        NotLayeredError: this model cannot be run so.
    """

    def __init__(
        self, material: Material, config: Any, saves: Sequence[SaveTensor], *, scoring: bool
    ) -> None:
        keep_freed_memory(material.options.max_memory)
        # MergeKit saves the configuration that it was planned with.
        self._material, self._config = material, copy.deepcopy(config)
        tokens = default_batch_tokens(material.options.device)
        predictive = material.predictive is not None
        self._probe_batches = make_batches(
            material.probes.probes, answers=predictive, decoder_start=None, max_tokens=tokens
        )
        known = material.own_scores.scores if scoring else {}
        self._scores = bool(known)
        self._scorer = Scorer(material.scoring, known, model=f"the {MERGED}")
        scored = self._scorer.batches(decoder_start=None, max_tokens=tokens) if known else ()
        self._batches = (*self._probe_batches, *scored)
        self._model = self._build()
        self._shared: dict[str, torch.Tensor | Shelved] = {}
        self._require_every_tensor(saves)
        self.depth = self._model.depth
        block = material.recipe.compat
        self._layers = resolve_layers(block.layers, [self.depth], [MERGED])
        self._recorder = ModelRecorder(
            MERGED,
            material.probes,
            self._probe_batches,
            layers=self._layers,
            pooling=block.pooling,
            answers_reason=None if predictive else NOT_ASKED,
        )
        self._profile = LayerProfile(
            self.depth,
            len(material.probes.probes),
            block.pooling,
            self._probe_batches,
            material.probes.rounds,
        )

    def stage_of(self, tensor: str) -> int | None:
        """The first stage that needs a tensor, None if none does."""
        return next(iter(self._model.stages_of(tensor)), None)

    def run(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> LayerReading | None:
        """Run one stage on all probes.

        Returns:
            The layer that is now known; None for layer L before its norm.

        Raises:
            NotFiniteError: the merged model breaks here.
            EvaluationError: the tensors do not fit the model.
        """
        if stage == 0:
            self._fit_vocabulary(tensors)
            self._shared = self._set_aside(tensors)
            for number, hidden in self._model.embed(tensors):
                self._add_states(0, number, hidden)
        elif stage < self.depth:
            for number, hidden in self._model.layer(stage, tensors):
                self._add_states(stage, number, hidden)
        elif stage == self.depth:
            for _ in self._model.layer(stage, tensors):
                pass  # what is compared is the state after the norm
            return None
        else:
            for number, outputs in self._model.head({**self._taken(), **tensors}):
                self._add_states(self.depth, number, outputs.hidden[0])
                self._add_answers(number, outputs)
        return self._read(min(stage, self.depth))

    def distortion(self) -> tuple[Measured, Measured | None, str | None]:
        """As ``Material.distortion``, after the last stage."""
        options = self._material.options
        arrays = StateArrays(
            [MERGED],
            self._material.probes,
            layers=self._layers,
            depth=self.depth,
            pooling=self._material.recipe.compat.pooling,
            predictive=self._material.predictive is not None,
        )
        arrays.put(0, self._recorder.states())
        states = arrays.states(1, options.device, options.dtype, engine="layer by layer")
        return self._material.distortion(states)

    def losses(self) -> tuple[TaskLoss, ...]:
        """Merging loss of every scored task, after the last stage."""
        return self._material.losses(self._scorer.scores()) if self._scores else ()

    def _build(self) -> LayeredModel:
        answers = self._material.predictive is not None or self._scores
        # Building draws random weights that nobody reads; the merge's own draws must not move.
        with torch.random.fork_rng(devices=[]):
            return LayeredModel(
                self._config, self._material.options, f"the {MERGED}", self._batches, answers
            )

    def _require_every_tensor(self, saves: Sequence[SaveTensor]) -> None:
        if missing := self._model.missing(save.tensor_name for save in saves):
            raise NotLayeredError(f"MergeKit has no {missing[0]}, which transformers needs")
        for save in saves:
            if not save.optional and self.stage_of(save.tensor_name) is None:
                raise NotLayeredError(f"transformers has no place for {save.tensor_name}")

    def _set_aside(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | Shelved]:
        """What the head needs again, which the merge makes only once; on disk where it is large."""
        last, shelf = self.depth + 1, Shelf()
        shared = {n: t for n, t in tensors.items() if last in self._model.stages_of(n)}
        if sum(tensor.nbytes for tensor in shared.values()) <= SHARED_LIMIT:
            return dict(shared)
        return {name: shelf.put(tensor) for name, tensor in shared.items()}

    def _taken(self) -> dict[str, torch.Tensor]:
        shared, self._shared = self._shared, {}
        return {n: t.take() if isinstance(t, Shelved) else t for n, t in shared.items()}

    def _fit_vocabulary(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """A recipe with a tokenizer of its own makes another vocabulary as the merge runs."""
        rows, text = self._model.vocabulary_of(tensors), self._config.get_text_config()
        if rows is not None and rows != text.vocab_size:
            text.vocab_size = rows
            self._model = self._build()

    def _add_states(self, layer: int, number: int, hidden: torch.Tensor) -> None:
        if number >= len(self._probe_batches):
            return  # what is scored is not pooled
        batch = self._batches[number]
        if not self._profile.add(layer, batch, hidden):
            raise NotFiniteError(layer, "hidden states")
        if layer in self._layers:
            self._recorder.add_hidden(batch, self._layers.index(layer), hidden)

    def _add_answers(self, number: int, outputs: Outputs) -> None:
        if outputs.answers is None:
            return
        if outputs.answers.isnan().any():
            raise NotFiniteError(self.depth, "next-token distributions")
        if number >= len(self._probe_batches):
            self._scorer.add(self._batches[number], outputs)
        elif self._material.predictive is not None:
            self._recorder.add_answers(self._batches[number], outputs.answers)

    def _read(self, layer: int) -> LayerReading:
        return self._material.reading(layer, self.depth, *self._profile.close(layer))
