"""The signals that the document compares, and what they are called there."""

from collections.abc import Mapping, Sequence

BEFORE: Mapping[str, str] = {
    "gate.ball": "r², hidden, own and shipped probes",
    "gate.mds_unrelated": "MDS `unrelated`, the same",
    "gate.mds_group_max": "MDS `group_max`, the same",
    "gate.mds_group_minmax": "MDS `group_minmax`, the same",
    "gate.own": "own-task distortion predicted, the same",
    "hidden.ball": "r², hidden, 64 own probes a task",
    "hidden.diameter": "Δ², the same",
    "hidden.predicted": "distortion predicted, the same",
    "hidden.mds_unrelated": "MDS `unrelated`, the same",
    "hidden.own": "own-task distortion predicted, the same",
    "recipe.predicted": "distortion predicted, by the recipe's own weights",
    "hidden128.ball": "r², 128 probes a task",
    "hidden32.ball": "r², 32 probes a task",
    "hidden16.ball": "r², 16 probes a task",
    "hidden5.ball": "r², 5 probes a task",
    "hidden_builtin.ball": "r², shipped probes alone",
    "hidden_builtin.mds_unrelated": "MDS `unrelated`, shipped probes alone",
    "tokens.ball": "r², token by token",
    "tokens.own": "own-task distortion predicted, token by token",
    "last_token.ball": "r², last token",
    "last_token.own": "own-task distortion predicted, last token",
    "every_layer.ball": "r², mean over layers",
    "every_layer.own": "own-task distortion predicted, mean over layers",
    "predictive.ball": "r², predictive",
    "predictive.own": "own-task distortion predicted, predictive",
    "predictive.mds_unrelated": "MDS `unrelated`, predictive",
    "predictive_builtin.ball": "r², predictive, shipped probes alone",
}
"""Known before the merge, from the experts' states."""

REHEARSED: Mapping[str, str] = {
    "measured.hidden_pooled": "distortion, hidden",
    "measured.gate_pooled": "the same, own and shipped probes",
    "measured.builtin_pooled": "the same, shipped probes alone",
    "measured.hidden_own": "own-task distortion, hidden",
    "measured.last_token_pooled": "distortion, last token",
    "measured.last_token_own": "own-task distortion, last token",
    "measured.every_layer_pooled": "distortion, mean over layers",
    "measured.every_layer_own": "own-task distortion, mean over layers",
    "measured.predictive_pooled": "distortion, predictive",
    "measured.predictive_own": "own-task distortion, predictive",
    "measured.few_loss": "merging loss on the same 32 probes, by the first token",
    "measured.variance_lost": "variance of the pooled states lost",
    "measured.rank_lost": "their effective rank lost",
}
"""Of the merged model itself on 32 probes a task; all but the loss without targets."""

RIVALS: Mapping[str, str] = {
    "base_score": "base's score / expert's score, the lowest, its sign changed",
    "largest_norm": "largest ‖θ − θ₀‖",
    "experts": "number of experts",
    "magnitude_change_ratio": "magnitude change ratio",
    "sign_change_ratio": "sign change ratio",
    "conflicting_magnitude_change_ratio": "conflicting magnitude change ratio",
    "task_vector_cosine": "mean cosine of task vectors, its sign changed",
    "cka_mean": "1 − linear CKA, mean pooling",
    "cka_mean_debiased": "1 − linear CKA, debiased",
    "cka_last": "1 − linear CKA, last token",
    "gradient_base_l2": "gradient L2, at the base",
    "gradient_expert_l2": "gradient L2, at the experts",
    "mergelens": "MergeLens, with the base",
}
"""What others foretell collapse by."""

_SHORT: Mapping[str, str] = {
    "gate.ball": "r²",
    "gate.mds_unrelated": "MDS",
    "gate.own": "own-task distortion predicted",
    "hidden_builtin.ball": "r² of shipped probes alone",
    "predictive.own": "own-task distortion predicted, predictive",
    "last_token.own": "own-task distortion predicted, last token",
    "every_layer.own": "own-task distortion predicted, mean over layers",
    "largest_norm": "‖θ − θ₀‖",
    "measured.hidden_own": "own-task distortion measured",
    "measured.predictive_own": "own-task distortion measured, predictive",
    "measured.every_layer_own": "own-task distortion measured, mean over layers",
    "measured.gate_pooled": "distortion measured",
}


def limits_said(limits: Mapping[str, float]) -> str:
    """``r² over 0.45 or MDS over 3``."""
    return " or ".join(f"{_SHORT[name]} over {limit:g}" for name, limit in limits.items())


def signals_said(names: Sequence[str]) -> str:
    """``r² or MDS``."""
    return " or ".join(_SHORT[name] for name in names)
