"""How far the tasks' gradients lie apart, as a predictor of collapse.

    python benchmarks/collapse/gradient_distance.py --folder FOLDER --output predictors.csv

g_i is the gradient of task i's answer loss in the weights of the layers from FIRST_LAYER on, once
at the base, on rows that experts are trained on, and once at expert i itself, on rows that nobody
is trained on. The latter is how the code of arXiv 2601.22285 does it (for image classifiers, with
ten rows), where alignment of gradients is the most consistent sign of models that merge well. Each
gives, over the pairs of a group,

    l2       ‖g_i − g_j‖
    l2_unit  ‖g_i/‖g_i‖ − g_j/‖g_j‖‖
    cosine   1 − ⟨g_i, g_j⟩ / (‖g_i‖ ‖g_j‖)

The gradients, 106 MB each for SmolLM2-135M, are kept in FOLDER/gradients.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from predictor_rows import Group, PredictorRow, arguments, pair_rows, run, tasks_of
from rows import Part, read
from safetensors import safe_open
from safetensors.torch import save_file
from training import Example, encode
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import FIRST_LAYER

At = Literal["base", "expert"]
ROWS = 32
READINGS = ("l2", "l2_unit", "cosine")
PREDICTORS = tuple(
    f"gradient_{at}_{reading}{end}"
    for at in ("base", "expert")
    for reading in READINGS
    for end in ("", "_max")
)
_PART: dict[At, Part] = {"base": "train", "expert": "probes"}
_CHUNK = 2**18


def answer_loss(model: Any, example: Example) -> torch.Tensor:
    """Mean of −log p of the answer's tokens after the prompt, in nats."""
    prompt, answer = example
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])


def gradient(model: Any, examples: Sequence[Example], first_layer: int) -> torch.Tensor:
    """Gradient of the mean over rows of ``answer_loss``, flat, in the weights of the last layers.

    Embeddings, head and final norm are left out, and so are the layers before ``first_layer``.

    Raises:
        ValueError: the model has no such layer, or the gradient is not finite.
    """
    wanted = []
    for name, parameter in model.named_parameters():
        found = re.search(r"\.layers\.(\d+)\.", name)
        parameter.requires_grad_(found is not None and int(found[1]) >= first_layer)
        if parameter.requires_grad:
            wanted.append(parameter)
    if not wanted:
        raise ValueError(f"the model has no layer {first_layer} or above; give a lower one")
    model.zero_grad(set_to_none=True)
    for example in examples:
        (answer_loss(model, example) / len(examples)).backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in wanted])
    model.zero_grad(set_to_none=True)
    if not bool(flat.isfinite().all()):
        raise ValueError("the gradient is NaN or infinite; check the model's weights")
    return flat


def keep(file: Path, flat: torch.Tensor, seconds: float) -> None:
    """Write a gradient in half the space: its direction scaled to RMS 1, and its norm.

    At RMS 1 no element can be above √n, so float16 does not overflow; it rounds by at most 2⁻¹¹.
    """
    norm = float(flat.double().norm())
    rms = norm / flat.numel() ** 0.5
    direction = (flat / rms if rms > 0 else flat).to(torch.float16)
    part = file.with_suffix(".part")
    save_file({"direction": direction}, part, {"norm": repr(norm), "seconds": repr(seconds)})
    part.rename(file)


def compare(
    files: Sequence[Path], chunk: int = _CHUNK
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norms, cosines and seconds of kept gradients; a cosine with 0 is NaN.

    Streamed: of every gradient ``chunk`` elements are in memory.
    """
    opened = [safe_open(file, framework="pt") for file in files]
    told = [file.metadata() for file in opened]
    norms = np.array([float(t["norm"]) for t in told])
    seconds = np.array([float(t["seconds"]) for t in told])
    slices = [file.get_slice("direction") for file in opened]
    sizes = {s.get_shape()[0] for s in slices}
    if len(sizes) != 1:
        raise ValueError(f"gradients of {sorted(sizes)} elements: of models of different shapes")
    gram = torch.zeros(len(files), len(files), dtype=torch.float64)
    for start in range(0, sizes.pop(), chunk):
        rows = torch.stack([s[start : start + chunk] for s in slices]).double()
        gram += rows @ rows.T
    length = gram.diagonal().sqrt()
    cosines = (gram / torch.outer(length, length)).numpy()
    cosines[np.diag_indices(len(files))] = np.where(norms > 0, 1.0, np.nan)
    return norms, np.clip(cosines, -1, 1), seconds


def readings(norms: np.ndarray, cosines: np.ndarray) -> dict[str, np.ndarray]:
    """The three matrices of the module's docstring."""
    square = np.add.outer(norms**2, norms**2) - 2 * np.outer(norms, norms) * cosines
    return {
        "l2": np.sqrt(np.maximum(square, 0)),
        "l2_unit": np.sqrt(np.maximum(2 - 2 * cosines, 0)),
        "cosine": 1 - cosines,
    }


def scores(
    folder: Path, groups: Sequence[Group], first_layer: int = FIRST_LAYER
) -> Iterator[PredictorRow]:
    """Both kinds of gradient for every group; the gradients that are missing are computed.

    Seconds are those of the forward and backward passes of the group's own gradients.
    """
    tasks = tasks_of(folder, groups)
    for at in ("base", "expert"):
        # At the base, experts of one task have one gradient.
        keys = tasks if at == "base" else {name: name for name in tasks}
        order = list(dict.fromkeys(keys.values()))
        place = {key: i for i, key in enumerate(order)}
        files = list(_files(folder, at, keys, tasks, first_layer))
        norms, cosines, seconds = compare(files)
        matrices = readings(norms, cosines)
        for group in groups:
            index = [place[keys[name]] for name in group]
            cost = float(seconds[sorted(set(index))].sum())
            for reading, matrix in matrices.items():
                own = matrix[np.ix_(index, index)]
                yield from pair_rows(group, f"gradient_{at}_{reading}", own, cost)


def _files(
    folder: Path, at: At, keys: dict[str, str], tasks: dict[str, str], first_layer: int
) -> Iterator[Path]:
    """A kept gradient for every key, in order, computed where it is not there."""
    place = folder / "gradients" / f"{at}-from-{first_layer}"
    place.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = None
    for key, name in {key: name for name, key in keys.items()}.items():
        file = place / f"{key}.safetensors"
        if not file.exists():
            if model is None or at == "expert":
                source = folder / "base" if at == "base" else folder / "experts" / name
                model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
            examples = encode(read(folder / "tasks", tasks[name], _PART[at])[:ROWS], tokenizer)
            start = time.process_time()
            flat = gradient(model, examples, first_layer)
            keep(file, flat, time.process_time() - start)
        yield file


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--first-layer", type=int, default=FIRST_LAYER, help="0 for all layers")
    return parser.parse_args()


if __name__ == "__main__":
    given = _options()
    transformers.utils.logging.disable_progress_bar()
    run(given, PREDICTORS, partial(scores, first_layer=given.first_layer))
