"""Fixtures that many test files share: tiny models, built once in a session, never written to.

torch and transformers are imported where they are used: the process that hands the tests out to
its workers needs neither, and they take longer than a third of the quick tests.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

_numbers = count()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: threads that wait for one another would be most of the time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """The tokenizer that every tiny model is saved with."""
    import tiny_models

    return tiny_models.make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_tokenizer) -> Callable[..., Path]:
    """``tiny_model(architecture, seed=0)``: folder of a model; see ``tiny_models.BUILDERS``."""
    import tiny_models

    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str, seed: int = 0) -> Path:
        if (architecture, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{seed}") / "model"
            made[architecture, seed] = tiny_models.save_tiny_model(
                architecture, seed, folder, tiny_tokenizer
            )
        return made[architecture, seed]

    return make


@pytest.fixture(scope="session")
def variant(tmp_path_factory) -> Callable[..., Path]:
    """``variant(folder, noise, seed=0)``: a copy whose weights are off by ``noise`` spreads."""
    import tiny_models

    made: dict[tuple[Path, float, int], Path] = {}

    def make(source: Path, noise: float, seed: int = 0) -> Path:
        if (source, noise, seed) not in made:
            folder = tmp_path_factory.mktemp(f"variant-{seed}") / "model"
            made[source, noise, seed] = tiny_models.save_variant(source, noise, seed, folder)
        return made[source, noise, seed]

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache for each test, or it would find what another or its user has measured."""
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))
    for module in ("cached_files", "cache_listing"):
        monkeypatch.setattr(f"mergekit_collapse.{module}.cache_folder", lambda: folder)
    return folder


@pytest.fixture(autouse=True)
def outside_of_any_workflow(monkeypatch):
    """Or the tests would annotate the continuous integration that they run in."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def pytest_collection_modifyitems(items):
    """What takes longest begins first, or one worker would run it while the others are idle."""
    items.sort(key=lambda item: not item.path.name.startswith("test_real_"))


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the demo's base model."""
    from mergekit_collapse.cache_folder import cache_folder
    from mergekit_collapse.demo.smollm2 import ensure_base, find_gguf
    from mergekit_collapse.errors import EvaluationError

    try:
        find_gguf()
    except EvaluationError as error:
        # Where continuous integration skipped this, nobody would notice.
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return ensure_base(cache_folder())


@pytest.fixture(scope="session")
def merge_options(tmp_path_factory):
    """MergeKit's own, for recipes with adapters."""
    from mergekit.options import MergeOptions

    return MergeOptions(quiet=True, lora_merge_cache=str(tmp_path_factory.mktemp("adapters")))
