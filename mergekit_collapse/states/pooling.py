"""One state per probe, or one per token, from a padded batch of hidden states."""

from typing import Literal

import torch

from mergekit_collapse.shapes import Float32, Int64

Pooling = Literal["mean", "last_token", "tokens"]


def pool(
    hidden: Float32[torch.Tensor, "sequence position feature"],
    mask: Int64[torch.Tensor, "sequence position"],
    pooling: Pooling,
) -> Float32[torch.Tensor, "row feature"]:
    """Pool the states where the mask is 1, wherever padding stands.

        mean:        row s = (sum over t with mask[s, t] = 1 of hidden[s, t]) / (sum of mask[s])
        last_token:  row s = hidden[s, max{t: mask[s, t] = 1}]
        tokens:      a row for every (s, t) with mask[s, t] = 1, ordered by s, then t

    Args:
        hidden: states in the model's own units, in float32 so that sums keep their digits.
        mask: 1 for a state that counts, 0 for padding and for tokens after the prompt.

    Returns:
        One row per sequence, or for ``tokens`` one per state that counts; same units.
        What stands at padding never enters, not even NaN.

    Raises:
        ValueError: a sequence has no state that counts.
    """
    if not mask.any(dim=1).all():
        raise ValueError("a sequence has no token to pool")
    if pooling == "tokens":
        return hidden[mask.bool()]
    if pooling == "last_token":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (positions * mask).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    # where, not a product with the mask: 0 * NaN is NaN.
    kept = torch.where(mask.bool().unsqueeze(2), hidden, 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)
