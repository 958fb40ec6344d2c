"""A merge watched while it runs: each layer is read when it is there, and may end the merge."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.io.tasks import SaveTensor
from tqdm import tqdm

from mergekit_collapse.errors import CompatError, EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation, Source
from mergekit_collapse.evaluation.judgement import layer_over, require_layers
from mergekit_collapse.findings import printable
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.material import Material
from mergekit_collapse.states.skeleton import NotLayeredError
from mergekit_collapse.verdict import Reason, Verdict
from mergekit_collapse.watch.layer_tasks import WatchLayer, watch_layers
from mergekit_collapse.watch.observer import NotFiniteError, Observer

LOG = logging.getLogger(__name__)
_BROKEN = "An expert is broken or the weights are too large; look at this layer."
_FAR = "From here on the merge is farther from this expert than it may be."


class MergeStopped(Exception):
    """A layer is over its limit: an order to end the merge, not a mistake."""


class Watch:
    """What MergeKit's plan is extended by, and what came of it.

    A model that cannot be run layer by layer is merged all the same; ``blind`` says why.

    Args:
        material: the experts.
        source: what the evaluation is called.
        stop_at: distortion of a layer that ends the merge; None for any. What is NaN or
            infinite always does.
        blocking: False to note what would end the merge, and to look no further.
        exit_code: of a merge that was ended.
    """

    def __init__(
        self,
        material: Material,
        source: Source,
        *,
        stop_at: float | None,
        blocking: bool,
        exit_code: int,
    ) -> None:
        self._material, self._source = material, source
        self._stop_at, self._blocking, self._exit_code = stop_at, blocking, exit_code
        self._decides = blocking and (source == "rehearsal" or stop_at is not None)
        self.blind: str | None = material.unlayered
        self._observer: Observer | None = None
        self._readings: list[LayerReading] = []
        self._stopped: tuple[int, Reason] | None = None
        self._seconds = 0.0
        self._bar = tqdm(desc="watching", unit="layer", disable=True)

    def plan(
        self, config: Any, saves: Sequence[SaveTensor], in_layer_order: bool
    ) -> Sequence[WatchLayer]:
        """Further tasks of the merge, one a stage; none for a model that it is blind to.

        Args:
            config: of the merged model.
            saves: the tensors that MergeKit is going to make.
            in_layer_order: whether it makes them in the order of their layers.
        """
        if self.blind is None:
            try:
                self._observer = Observer(
                    self._material, config, saves, scoring=self._source == "rehearsal"
                )
            except NotLayeredError as error:
                self.blind = f"this model cannot be run layer by layer: {error}"
            except CompatError as error:
                if self._decides:
                    raise
                self.blind = str(error)
        if self._observer is None:
            LOG.warning("the merge is not watched: %s", printable(str(self.blind)))
            return ()
        depth, show = self._observer.depth, self._material.options.progress
        self._bar = tqdm(total=depth, desc="watching", unit="layer", disable=not show)
        return watch_layers(
            saves,
            self._observer.stage_of,
            depth + 2,
            self.step,
            self._give_up,
            in_layer_order=in_layer_order,
        )

    def step(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Run one stage of the merged model on all probes and judge the layer.

        Raises:
            MergeStopped: the layer is over the limit, and the watch may block.
            EvaluationError: the tensors do not fit the model.
        """
        if self._observer is None or self._stopped is not None:
            return
        start = time.perf_counter()
        try:
            reading = self._observer.run(stage, tensors)
        except NotFiniteError as error:
            where = f"layer {error.layer}"
            reason = Reason("finite", str(error), where, None, "not finite", None, _BROKEN)
            self._stop(error.layer, reason)
        except EvaluationError as error:
            self._give_up(error)
        else:
            if reading is not None:
                self._readings.append(reading)
                self._tell(reading)
                self._judge(reading)
        finally:
            self._seconds += time.perf_counter() - start

    def evaluation(self) -> Evaluation:
        """What was seen; its verdict is about the layers alone.

        Raises:
            EvaluationError: the merge did not run, or could not be watched.
        """
        self._bar.close()
        layers = tuple(one for one in self._readings if one.layer > 0)
        if self._observer is None:
            raise EvaluationError(f"the merge was not watched: {self.blind or 'it did not run'}")
        if self._stopped is not None:
            layer, reason = self._stopped
            verdict = Verdict("warn", 0, (reason,))
            if self._blocking:
                verdict = Verdict("refuse", self._exit_code, (reason,))
            return Evaluation(
                self._source,
                None,
                layers=layers,
                layers_reason=None if layers else "the first layer ended the watch",
                predictive_reason=f"the watch ended after layer {layer}",
                stopped_at=layer,
                verdict=verdict,
                seconds=self._seconds,
            )
        if self._stop_at is not None:
            require_layers(self._readings)
        return Evaluation(
            self._source,
            None,
            *self._observer.distortion(),
            layers=layers,
            tasks=self._observer.losses(),
            notes=self._material.unscored,
            seconds=self._seconds,
        )

    def _give_up(self, error: EvaluationError) -> None:
        """The merge is judged when it is done; what only tells must not end it.

        Raises:
            EvaluationError: the same, where the watch decides.
        """
        if self._decides:
            raise error
        LOG.warning("the merge is watched no longer: %s", printable(str(error)))
        self.blind, self._observer = str(error), None

    def _judge(self, reading: LayerReading) -> None:
        if self._stop_at is None:
            return
        names = self._material.recipe.names
        if (reason := layer_over(reading, self._stop_at, names, _FAR)) is not None:
            self._stop(reading.layer, reason)

    def _stop(self, layer: int, reason: Reason) -> None:
        self._stopped = layer, reason
        LOG.warning("%s", printable(str(reason)))
        if self._blocking:
            self._bar.close()
            raise MergeStopped(str(reason))

    def _tell(self, reading: LayerReading) -> None:
        told = {
            "distortion": reading.worst,
            "variance": reading.variance_ratio,
            "rank": reading.rank_ratio,
        }
        text = ", ".join(f"{name} {v:.3g}" for name, v in told.items() if v is not None)
        LOG.info("layer %d of %s: %s", reading.layer, self._bar.total, text)
        self._bar.n = reading.layer
        self._bar.set_postfix_str(text)
