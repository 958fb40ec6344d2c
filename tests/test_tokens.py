"""Probes as token ids: where they are cut, and where an answer begins."""

import pytest
import tiny_models
from tokenizers import processors

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.probes import Probe, ProbeSet, ProbeTask
from mergekit_collapse.probes.tokens import tokenize


def encode(tokenizer, prompt, target=None, max_tokens=64, encoder_decoder=False):
    probes = ProbeSet((ProbeTask("t", None, "here", 1),), (Probe(0, prompt, target),), "digest")
    found = tokenize(probes, tokenizer, max_tokens, encoder_decoder=encoder_decoder)
    return found.probes[0]


@pytest.fixture
def framing_tokenizer():
    """One that puts <s> before and </s> after every text, as encoders' do."""
    tokenizer = tiny_models.make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids[0]), ("</s>", ids[1])]
    )
    return tokenizer


def test_a_prompt_is_what_its_tokenizer_makes_of_it(framing_tokenizer):
    text = "Two plus three is five"
    assert encode(framing_tokenizer, text).prompt == tuple(framing_tokenizer(text)["input_ids"])


def test_an_answer_follows_the_text_and_not_the_closing_token(framing_tokenizer):
    probe = encode(framing_tokenizer, "Two plus three is", "five")
    start, *body = probe.prompt
    assert start == framing_tokenizer.convert_tokens_to_ids("<s>")
    whole = framing_tokenizer("Two plus three is five", add_special_tokens=False)["input_ids"]
    assert [*body, *probe.target] == whole


def test_an_encoder_decoder_keeps_its_prompt_whole(framing_tokenizer):
    probe = encode(framing_tokenizer, "Two plus three is", "five", encoder_decoder=True)
    assert probe.prompt == tuple(framing_tokenizer("Two plus three is")["input_ids"])
    assert framing_tokenizer.decode(probe.target) == "five"


def test_a_long_prompt_loses_its_beginning(framing_tokenizer):
    text = "the dog does not mind at all. " * 20
    probe = encode(framing_tokenizer, text, "yes", max_tokens=16)
    full = framing_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(probe.prompt) + len(probe.target) == 16
    assert probe.prompt[0] == framing_tokenizer.convert_tokens_to_ids("<s>")
    assert list(probe.prompt[1:]) == full[1 - len(probe.prompt) :]


def test_a_long_target_leaves_half_for_the_prompt(framing_tokenizer):
    probe = encode(framing_tokenizer, "five " * 50, "wonderful " * 50, max_tokens=16)
    assert (len(probe.prompt), len(probe.target)) == (8, 8)


def test_the_digest_follows_the_ids(framing_tokenizer):
    def digest(text, **keys):
        probes = ProbeSet((ProbeTask("t", None, "here", 1),), (Probe(0, text, None),), "digest")
        return tokenize(probes, framing_tokenizer, 64, encoder_decoder=False, **keys).digest

    assert digest("one") == digest("one") != digest("two")


def test_a_prompt_without_tokens_is_told():
    class Silent:
        all_special_ids = ()

        def __call__(self, text, **_):
            return {"input_ids": []}

    with pytest.raises(EvaluationError, match="gives no token for"):
        encode(Silent(), "one")
