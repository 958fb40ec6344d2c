"""Bytes read and FLOPs done by a sweep, from its figures alone."""

from collections.abc import Sequence

from mergekit_collapse.states.figures import BatchSize, ModelFigures, Runner, SweepFigures


def bytes_read(sweep: SweepFigures, together: int) -> int:
    """Bytes of weights: each checkpoint once for the models that run together, each adapter once.

    Models of different checkpoints are taken to differ. Stages that do not are compared with one
    another first, which reads them as well, and then run as one.

    Args:
        together: how many of the models run at a time.
    """
    bases = sum(len({one.base for one in part}) for part in sweep.parts(together))
    return bases * sweep.figures.stored + sum(one.adapter_bytes for one in sweep.runners)


def flops(sweep: SweepFigures, together: int) -> int:
    """Floating-point operations, two for each multiplication and addition of a matrix product.

        per stage and batch: 2 · matrices · tokens + 4 · width of all heads · length · tokens

    Padding counts. Attention counts in full, with the half that a causal mask hides. What is no
    product of matrices (norms, activations, softmax, rotations) does not. Stages before the
    first that an adapter changes are run once for all models of a part.
    """
    figures, total = sweep.figures, 0
    common = [_by_stage(figures, batch) for batch in sweep.batches]
    for part in sweep.parts(together):
        for stage in range(len(figures.stages)):
            total += _branches(part, stage) * sum(one[stage] for one in common)
        total += sum(batch_flops(figures, batch) for one in part for batch in one.extras)
    return total + sum(one.merging for one in sweep.runners)


def batch_flops(figures: ModelFigures, batch: BatchSize) -> int:
    """The same of one model for one batch."""
    return sum(_by_stage(figures, batch))


def _branches(part: Sequence[Runner], stage: int) -> int:
    """How many of these models differ from one another in or before a stage."""
    changed = [bool(one.changed) and min(one.changed) <= stage for one in part]
    alike = {one.base for one, differs in zip(part, changed, strict=True) if not differs}
    return sum(changed) + len(alike)


def _by_stage(figures: ModelFigures, batch: BatchSize) -> list[int]:
    found = []
    for stage in figures.stages:
        products = stage.matrices * batch.tokens + stage.decoder_matrices * batch.decoded
        pairs = stage.attentions * batch.length * batch.tokens
        pairs += stage.decoder_attentions * batch.decoder_length * batch.decoded
        pairs += stage.cross_attentions * batch.length * batch.decoded
        found.append(2 * products + 4 * figures.attended * pairs)
    # The head is run at the answers alone.
    found[-1] += 2 * batch.answers * figures.hidden * figures.vocabulary
    return found
