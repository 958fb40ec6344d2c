"""Scores against transformers one row at a time, and against the demo's own scores."""

import math

import pytest
import tiny_models
import torch
import transformers
from tokenizers import processors

from mergekit_collapse.demo.scores import Row, score
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.evaluation.scoring import Scorer, score_model
from mergekit_collapse.evaluation.scoring_set import scoring_set
from mergekit_collapse.probes.probes import Probe, ProbeSet, ProbeTask
from mergekit_collapse.states.forward import Outputs

PROMPTS = [
    "This film was wonderful, the acting superb. It is",
    "That was the worst meal that I have ever had. It is",
    "Two plus three is",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind. It is",
    "Question: which planet is the largest in the solar system? Answer:",
]
# One token's difference, several tokens, and the same first token in two of them.
CHOICES = ("good", "the worst", "the largest", "nine")


def probe_set(*tasks):
    """``(owner, [(prompt, target), ...])`` for each task."""
    made = [ProbeTask(f"task-{i}", o, "here", len(rows)) for i, (o, rows) in enumerate(tasks)]
    probes = [Probe(i, p, t) for i, (_, rows) in enumerate(tasks) for p, t in rows]
    return ProbeSet(tuple(made), tuple(probes), "digest")


def rows(choices=CHOICES):
    return [(prompt, choices[i % len(choices)]) for i, prompt in enumerate(PROMPTS)]


def make(probes, choices, tokenizer, max_tokens=64, encoder_decoder=False):
    return scoring_set(probes, choices, tokenizer, max_tokens, encoder_decoder=encoder_decoder)


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


@torch.no_grad()
def log_likelihood(model, tokenizer, prompt, answer):
    """Of one answer, without padding and without this package, in nats; and its tokens."""
    start = tokenizer(prompt)["input_ids"]
    target = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    if model.config.is_encoder_decoder:
        target = tokenizer(answer, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([target])
        logits = model(input_ids=torch.tensor([start]), labels=labels).logits[0]
    else:
        logits = model(input_ids=torch.tensor([start + target])).logits[0, len(start) - 1 : -1]
    steps = logits.double().log_softmax(dim=-1)
    return sum(float(steps[k, token]) for k, token in enumerate(target)), len(target)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "t5"])
def test_both_metrics_equal_transformers_one_row_at_a_time(
    tiny_model, tiny_tokenizer, architecture
):
    model = load(tiny_model(architecture))
    probes = probe_set((None, rows()), (1, rows()), (0, rows()))
    encoder_decoder = architecture == "t5"
    scoring = make(
        probes, [CHOICES, CHOICES, None], tiny_tokenizer, encoder_decoder=encoder_decoder
    )
    assert [(t.task, t.owner, t.metric, t.rows) for t in scoring.tasks] == [
        (1, 1, "accuracy", 5),
        (2, 0, "likelihood", 5),
    ]
    found = score_model(model, scoring, None, max_tokens=100)

    def of(prompt, answer):
        return log_likelihood(model, tiny_tokenizer, prompt, answer)

    best = [max(CHOICES, key=lambda c, p=p: of(p, c)[0]) for p in PROMPTS]
    due = sum(b == target for b, (_, target) in zip(best, rows(), strict=True)) / len(PROMPTS)
    assert found[1] == pytest.approx(due)
    sums, lengths = zip(*(of(p, t) for p, t in rows()), strict=True)
    perplexity = math.exp(-sum(sums) / sum(lengths))
    assert found[2] == pytest.approx(1 / perplexity, rel=1e-4)
    # Batches of one give the same, and so does each task alone.
    for only in ([1], [2]):
        alone = score_model(model, scoring, only, max_tokens=1)
        assert alone == {only[0]: pytest.approx(found[only[0]], rel=1e-4)}


def test_right_and_wrong_add_up(tiny_model, tiny_tokenizer):
    """Give each row's likeliest choice as its target, then another."""
    model = load(tiny_model("llama"))
    best = [
        max(CHOICES, key=lambda c, p=p: log_likelihood(model, tiny_tokenizer, p, c)[0])
        for p in PROMPTS
    ]
    other = [next(c for c in CHOICES if c != b) for b in best]
    tasks = probe_set(
        (0, list(zip(PROMPTS, best, strict=True))), (0, list(zip(PROMPTS, other, strict=True)))
    )
    scoring = make(tasks, [CHOICES, CHOICES], tiny_tokenizer)
    assert score_model(model, scoring, None, max_tokens=100) == {0: 1.0, 1: 0.0}


def test_the_demo_scores_the_same(tiny_model):
    # The demo's base has a tokenizer without a leading token.
    tokenizer = tiny_models.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for seed in range(3):
        model = load(tiny_model("llama", seed))
        scoring = make(probe_set((0, rows())), [CHOICES], tokenizer)
        due = score(model, tokenizer, [Row(p, t) for p, t in rows()], CHOICES)
        assert score_model(model, scoring, None, max_tokens=100)[0] == pytest.approx(due)


def test_answers_that_differ_in_their_last_token_are_read_once(tiny_tokenizer):
    one = [c for c in ("a", "b", "c", "d") if len(tiny_tokenizer.tokenize(f"{c}")) == 1]
    scoring = make(probe_set((0, [("x\n", one[0])])), [tuple(one)], tiny_tokenizer)
    assert (len(scoring.sequences), len(scoring.endings)) == (1, len(one))
    scoring = make(probe_set((0, rows())), [CHOICES], tiny_tokenizer)
    for ending in scoring.endings:
        assert scoring.sequences[ending.sequence].target[:-1] == ending.tokens[:-1]


def test_a_long_prompt_is_cut_alike_for_all_choices(tiny_tokenizer):
    choices = ("good", "wonderful, the acting superb and the story moving")
    scoring = make(
        probe_set((0, [("the dog does not mind. " * 9 + "It is", "good")])),
        [choices],
        tiny_tokenizer,
        max_tokens=24,
    )
    prompts = {scoring.sequences[e.sequence].prompt for e in scoring.endings}
    assert len(prompts) == 1
    assert len(prompts.pop()) + max(len(e.tokens) for e in scoring.endings) == 24


def test_a_choice_keeps_the_white_space_of_the_target(tiny_tokenizer):
    scoring = make(probe_set((0, [("It is:", "\nyes \n")])), [(" yes", "no ")], tiny_tokenizer)
    texts = [tiny_tokenizer.decode(e.tokens) for e in scoring.endings]
    assert texts == ["\nyes \n", "\nno \n"]
    assert [e.right for e in scoring.endings] == [True, False]


@pytest.mark.parametrize(
    ("target", "choices", "message"),
    [
        ("bad", ("good", "nine"), "task 'task-0'.*'It is'.*'bad'.*'good', 'nine'.*add it"),
        ("good", ("good", " good"), "at least two different"),
        ("good", ("good",), "at least two different"),
        ("good", ("good", "good story"), "'good' begins the choice 'good story' in tokens"),
        ("good", ("good", " "), "none of them empty"),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(tiny_tokenizer, target, choices, message):
    with pytest.raises(InvalidRecipeError, match=message):
        make(probe_set((0, [("It is", target)])), [choices], tiny_tokenizer)


def test_only_tasks_with_an_owner_and_targets_are_scored(tiny_tokenizer):
    probes = probe_set((None, [("It is", "good")]), (0, [("It is", None)]))
    scoring = make(probes, [("bad", "worse"), None], tiny_tokenizer)
    assert scoring.tasks == scoring.sequences == scoring.endings == ()


def uniform(batch, scoring, value):
    count = len(batch.answer_positions)
    return Outputs((), torch.full((count, tiny_models.VOCABULARY), value))


def test_a_tie_is_not_right_and_nan_is_an_error(tiny_tokenizer):
    scoring = make(
        probe_set((0, [("x\n", "a")]), (0, [("x\n", "a")])), [("a", "b"), None], tiny_tokenizer
    )
    scorer = Scorer(scoring)
    (batch,) = scorer.batches(decoder_start=None, max_tokens=1000)
    with pytest.raises(ValueError, match="not read to its end"):
        scorer.scores()
    with pytest.raises(EvaluationError, match=r"model 7: the probability.*'task-0' is NaN"):
        Scorer(scoring, model="model 7").add(batch, uniform(batch, scoring, math.nan))
    scorer.add(batch, uniform(batch, scoring, math.log(0.25)))
    assert scorer.scores() == {0: 0.0, 1: pytest.approx(0.25)}


def test_the_likelihood_of_an_even_guess_is_one_in_the_vocabulary(tiny_tokenizer):
    scoring = make(probe_set((0, rows())), [None], tiny_tokenizer)
    scorer = Scorer(scoring, [0])
    for batch in scorer.batches(decoder_start=None, max_tokens=60):
        scorer.add(batch, uniform(batch, scoring, -math.log(tiny_models.VOCABULARY)))
    assert scorer.scores()[0] == pytest.approx(1 / tiny_models.VOCABULARY)


def test_an_answer_beyond_the_vocabulary_is_told(tiny_tokenizer):
    scoring = make(probe_set((0, rows())), [None], tiny_tokenizer)
    scorer = Scorer(scoring)
    batch = scorer.batches(decoder_start=None, max_tokens=10_000)[0]
    narrow = Outputs((), torch.zeros(len(batch.answer_positions), 5))
    with pytest.raises(EvaluationError, match="knows 5 tokens only"):
        scorer.add(batch, narrow)


def test_a_model_without_a_head_is_told(tiny_model, tiny_tokenizer):
    scoring = make(probe_set((0, rows())), [None], tiny_tokenizer)
    with pytest.raises(EvaluationError, match="no head that predicts"):
        score_model(load(tiny_model("bert")), scoring, None, max_tokens=100)


def test_a_digest_follows_what_its_task_asks_and_nothing_else(tiny_tokenizer):
    def digest(first, second=(), choices=CHOICES):
        tasks = probe_set((0, first), (1, second or rows()))
        return make(tasks, [choices, None], tiny_tokenizer).digest(0)

    assert digest(rows()) == digest(rows(), second=[("x\n", "a")])
    assert len({digest(rows()), digest(rows()[:4]), digest(rows(), choices=None)}) == 3


def test_a_choice_that_the_tokenizer_drops_is_told():
    class Forgetful:
        all_special_ids = ()

        def __call__(self, text, **_):
            return {"input_ids": [len(word) for word in text.split() if word != "?"]}

    with pytest.raises(InvalidRecipeError, match="no token for the row 'It is'"):
        make(probe_set((0, [("It is", "good")])), [("good", "?")], Forgetful())
