"""Folders of reports about merges that collapsed and merges that did not."""

import copy
import functools
import json

import made_documents
import numpy as np


@functools.cache
def _published():
    return made_documents.published()


def merge(number, *, ball=0.2, lost=5.0, method="linear", experts=None, **measured):
    """The report of an evaluated merge: r² before it, and what its worst task lost."""
    document = copy.deepcopy(_published())
    experts = experts or (f"./a{number}", f"./b{number}")
    document["recipe"] |= {
        "sha256": f"{number:064x}",
        "method": method,
        "effective": f"merge_method: {method}  # {number}",
    }
    for expert, model in zip(document["experts"], experts, strict=True):
        expert["model"] = model
    document["geometry"]["hidden"] |= {"ball_radius_squared": ball} | measured
    document["evaluation"]["tasks"][0]["loss_percent"] = -lost
    return document


def settings(document, **changed):
    """How the hidden states were measured."""
    document["geometry"]["hidden"] |= changed
    return document


def merges(groups=24, methods=("linear", "ties"), *, overlap=0.1, seed=0):
    """Half of the groups collapse, whatever the method; their r² is larger by .3, give or take."""
    random = np.random.default_rng(seed)
    for group in range(groups):
        bad = group % 2 == 1
        ball = 0.3 + 0.3 * bad + overlap * random.normal()
        for index, method in enumerate(methods):
            lost = random.uniform(25, 80) if bad else random.uniform(-5, 15)
            yield merge(
                group * len(methods) + index,
                ball=abs(ball),
                lost=lost,
                method=method,
                experts=(f"./a{group}", f"./b{group}"),
            )


def write(folder, documents, name="report.json"):
    """Each in a folder of its own, as the gate writes them; returns the folder."""
    for index, document in enumerate(documents):
        place = folder / f"m{index:03d}.compat"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(document), encoding="utf-8")
    return folder
