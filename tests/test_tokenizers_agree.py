"""The same text must give the same ids; tokens that no text has are a warning only."""

import json

import pytest
from mergekit.common import ModelReference
from preflight_models import byte_tokenizer, write_model

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_source import LocalFolder
from mergekit_collapse.preflight.tokenizer_files import tokenizer_digest
from mergekit_collapse.preflight.tokenizers_agree import compare_tokenizers, load_tokenizer


def test_equal_tokenizers_agree():
    assert compare_tokenizers([("a", byte_tokenizer()), ("b", byte_tokenizer())]) == ()
    assert compare_tokenizers([]) == ()


def test_the_first_text_that_differs_is_shown():
    swapped = byte_tokenizer(swap=("q", "z"))
    named = [("a", byte_tokenizer()), ("b", swapped)]
    (found,) = compare_tokenizers(named, ["same", "the quick", "zoo"])
    assert found.severity == "error"
    assert found.subject == "b"
    assert found.message.startswith("the same text gives different ids: 'the quick' is [")
    assert "(9 ids) here and [" in found.message
    assert found.message.endswith("in a")


def test_long_ids_are_shortened():
    named = [("a", byte_tokenizer()), ("b", byte_tokenizer(swap=("q", "z")))]
    (found,) = compare_tokenizers(named, ["x" * 5000 + "q" + "x" * 5000])
    assert "(10001 ids)" in found.message
    assert len(found.message) < 300


def test_an_ordinary_token_that_no_text_has():
    named = [("a", byte_tokenizer()), ("b", byte_tokenizer(swap=("q", "z")))]
    (found,) = compare_tokenizers(named, ["same"])
    assert found.severity == "error"
    assert "2 ordinary tokens, such as 'q'" in found.message


def test_added_special_tokens_are_a_warning():
    named = [("a", byte_tokenizer()), ("b", byte_tokenizer(added=["<tool>", "<call>"]))]
    (found,) = compare_tokenizers(named)
    assert found.severity == "warning"
    assert "2 tokens differ from a's" in found.message
    assert "'<call>', '<tool>'" in found.message


def digest_of(folder):
    return tokenizer_digest(LocalFolder(folder))


def test_digest_sees_what_ids_depend_on(tmp_path):
    one = write_model(tmp_path / "one")
    two = write_model(tmp_path / "two", tokenizer=byte_tokenizer(chat_template="{{ messages }}"))
    assert digest_of(one) == digest_of(two)
    swapped = write_model(tmp_path / "swapped", tokenizer=byte_tokenizer(swap=("q", "z")))
    assert digest_of(one) != digest_of(swapped)
    # A leading BOS is asked for beside the vocabulary, not in it.
    options = json.loads((two / "tokenizer_config.json").read_text())
    (two / "tokenizer_config.json").write_text(json.dumps(options | {"add_bos_token": True}))
    assert digest_of(one) != digest_of(two)
    assert digest_of(write_model(tmp_path / "none", tokenizer=None)) is None


def test_a_broken_tokenizer(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(EvaluationError, match="its tokenizer cannot be loaded"):
        load_tokenizer(ModelReference.parse(str(folder)))


def test_a_tokenizer_with_code_is_not_run(tmp_path):
    folder = write_model(tmp_path / "m", model_type="wonder", tokenizer=None)
    (folder / "tokenization_wonder.py").write_text("raise SystemExit('this was run')")
    options = {"auto_map": {"AutoTokenizer": ["tokenization_wonder.Wonder", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(EvaluationError, match="--trust-remote-code"):
        load_tokenizer(ModelReference.parse(str(folder)))
