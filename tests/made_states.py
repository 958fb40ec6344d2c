"""States and squared distances made up for the tests of the mathematics."""

import numpy as np
from hypothesis import strategies as st

from mergekit_collapse.geometry.rows import StateRows, select_probes
from mergekit_collapse.geometry.scales import LayerScale, layer_scales
from mergekit_collapse.states.states import SpaceStates


def squared_distances(points: np.ndarray) -> np.ndarray:
    difference = points[:, None] - points[None]
    return np.einsum("ijf,ijf->ij", difference, difference)


def gaussian_points(seed: int, count: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension))


def hidden_states(*layers: np.ndarray, probe_of_row: np.ndarray | None = None) -> SpaceStates:
    """States of [model, row, feature] arrays; a row is a probe unless said otherwise."""
    if probe_of_row is None:
        probe_of_row = np.arange(layers[0].shape[1])
    return SpaceStates(
        space="hidden",
        pooling="mean",
        layers=tuple(range(1, len(layers) + 1)),
        values=tuple(np.asarray(layer, dtype=np.float32) for layer in layers),
        probe_of_row=probe_of_row.astype(np.int64),
    )


def all_rows(states: SpaceStates, *, unit: bool = False) -> StateRows:
    return select_probes(states, np.arange(states.probe_of_row.max() + 1), unit=unit)


def plain_scales(rows: StateRows, scale: str, experts: int) -> tuple[LayerScale, ...]:
    weights = np.full((1, rows.probe_count), 1 / rows.probe_count)
    return layer_scales(rows, range(experts), scale, weights, "all probes")


def rotation(seed: int, dimension: int) -> np.ndarray:
    return np.linalg.qr(gaussian_points(seed, dimension, dimension))[0]


@st.composite
def point_sets(draw, min_count: int = 2, max_count: int = 7) -> np.ndarray:
    """General, flat, duplicated and nearly equal points."""
    count = draw(st.integers(min_count, max_count))
    dimension = draw(st.integers(1, 6))
    points = gaussian_points(draw(st.integers(0, 2**32 - 1)), count, dimension)
    kind = draw(st.sampled_from(["general", "grid", "duplicates", "near twins", "two scales"]))
    if kind == "grid":
        points = np.round(points)
    elif kind == "duplicates":
        points[: count // 2] = points[0]
    elif kind == "near twins":
        points[1:] = points[0] + 1e-9 * points[1:]
    elif kind == "two scales":
        points[1:] = points[1] + 1e-9 * points[1:]
    return points
