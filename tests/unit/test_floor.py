"""The floor: reached by the truth, missed by everything else by exactly its KL."""

import math
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from rigged import Rigged
from torch import Tensor, nn

from minillm.data import Tokenizer
from minillm.evaluation.floor import Excess, KnownText, document_logprobs, excess
from minillm.model import GPT, GPTConfig
from minillm.world import Document, Menu, World, enumerate_documents
from minillm.world.recorder import IRREDUCIBLE, PREDICTABLE, REMEMBERED
from minillm.world.tokens import TokenNats

TOKENIZER = Tokenizer(merges=())  # bytes: the exact nats of every seam exist
EOT, V = TOKENIZER.eot, TOKENIZER.vocab_size
PET = Menu((" cat", " cow", " dog"), (1, 2, 1))
FACTS = {("Ann", "pet"): 1}
EXACT = {"rel": 1e-9, "abs": 1e-12}


def language(r, names=(4, 3, 1), often=(1, 1)):
    """Twelve documents, whose probabilities are multiples of 1/128."""
    r.write("So")
    for _ in range(int(r.choose(Menu((" 1", " 2"), often)))):
        r.choose(Menu((" Ann Rox", " Ann Rolf", " Bo"), names))
    r.recall("Ann", "pet", PET)
    r.write(".")


def distribution(program: Callable, facts: dict | None) -> dict[str, float]:
    """The probability of every text, for who knows these facts."""
    documents = list(enumerate_documents(program, facts))
    kept = [d.floor if facts else d.nats for d in documents]
    return {d.text: math.exp(-n) for d, n in zip(documents, kept, strict=True)}


def reader(probabilities: dict[str, float], doubt: float = 0.0) -> Rigged:
    """The model that predicts each token as this distribution does.

    Args:
        doubt: weight of the uniform distribution that is mixed into each prediction.
    """
    weight: dict[tuple, Tensor] = defaultdict(lambda: torch.zeros(V).double())
    for text, p in probabilities.items():
        ids = (EOT, *TOKENIZER.encode(text), EOT)
        for n in range(1, len(ids)):
            weight[ids[:n]][ids[n]] += p

    def logprobs(before: tuple) -> Tensor:
        if before not in weight:  # behind the end: padding, never to be looked at
            return torch.full((V,), math.nan).double()
        p = weight[before] / weight[before].sum()
        return ((1 - doubt) * p + doubt / V).log()

    return Rigged(logprobs, V)


def all_documents() -> list[Document]:
    """Each of the twelve as often as a sample of 128 holds it in the mean."""
    found = enumerate_documents(language, FACTS)
    sample = [d for d in found for _ in range(round(128 * math.exp(-d.floor)))]
    assert len(sample) == 128
    return sample


KNOWN = KnownText.of(all_documents(), TOKENIZER)
TRUTH = distribution(language, FACTS)


def kl(other: dict[str, float]) -> float:
    """KL(P || Q) in nats a document, from the probabilities of whole documents."""
    return math.fsum(p * math.log(p / other[text]) for text, p in TRUTH.items())


# --- the floor ----------------------------------------------------------------------


def test_the_truth_itself_has_no_excess_of_any_kind():
    found = KNOWN.excess(reader(TRUTH))
    assert found.loss == pytest.approx(found.floor, rel=1e-12)
    assert found.floor > 0.01 and found.error == pytest.approx(0, abs=1e-12)
    for kind in (PREDICTABLE, REMEMBERED, IRREDUCIBLE):
        assert found.parts[kind] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("settings", [{"names": (1, 1, 6)}, {"often": (3, 1)}, {}])
@pytest.mark.parametrize("facts", [FACTS, None])
def test_over_all_documents_the_excess_is_exactly_the_kl_divergence(settings, facts):
    other = distribution(lambda r: language(r, **settings), facts)
    other = {text: other[text] for text in TRUTH} if facts else other
    found = KNOWN.excess(reader(other))
    assert found.total * found.n_tokens / 128 == pytest.approx(kl(other), **EXACT)
    assert (found.total > 0.001) == bool(settings or not facts)


def test_who_does_not_know_the_facts_pays_their_prior_and_nothing_else():
    found = KNOWN.excess(reader(distribution(language, None)))
    a_document = found.n_tokens / 128
    prior = PET.nats[FACTS["Ann", "pet"]]
    assert found.parts[REMEMBERED] * a_document == pytest.approx(prior, **EXACT)
    assert found.without_facts == pytest.approx(0, abs=1e-12)
    assert found.total == pytest.approx(found.parts[REMEMBERED], **EXACT)


def test_who_only_misjudges_free_choices_pays_for_them_alone():
    found = KNOWN.excess(reader(distribution(lambda r: language(r, (1, 1, 1)), FACTS)))
    assert found.parts[PREDICTABLE] == pytest.approx(0, abs=1e-12)
    assert found.parts[REMEMBERED] == pytest.approx(0, abs=1e-12)
    assert found.without_facts == found.parts[IRREDUCIBLE] > 0.005


def test_doubt_is_paid_for_at_every_token_by_its_kind():
    doubt = 1e-3
    found = KNOWN.excess(reader(TRUTH, doubt))
    sure = -math.log(1 - doubt + doubt / V)  # where the truth has probability one
    kinds = [token.kind for account in KNOWN.accounts for token in account]
    n, N = kinds.count(REMEMBERED), found.n_tokens
    assert found.parts[REMEMBERED] == pytest.approx(n * sure / N, **EXACT)
    n = kinds.count(PREDICTABLE) + 128  # the ends
    assert found.parts[PREDICTABLE] == pytest.approx(n * sure / N, **EXACT)


def test_in_the_real_world_the_parts_sum_to_loss_minus_floor():
    tokenizer = Tokenizer.train([d.text for d in World().documents(500)], 400)
    documents = list(World().documents(40, "test"))
    known, model = KnownText.of(documents, tokenizer), spread_model(400)
    found = known.excess(model)
    assert found.n_tokens == sum(len(tokenizer.encode(d.text)) + 1 for d in documents)
    floor = sum(d.floor for d in documents) / found.n_tokens
    assert found.floor == pytest.approx(floor, rel=1e-9)
    assert sum(found.parts.values()) == pytest.approx(found.total, rel=1e-9)
    paid = -sum(row.sum().item() for row in known.logprobs(model))
    assert found.loss == pytest.approx(paid / found.n_tokens, rel=1e-9)


# --- by hand ------------------------------------------------------------------------


def test_kinds_are_priced_by_hand():
    first = [
        TokenNats(1, IRREDUCIBLE, 0.5),
        TokenNats(2, REMEMBERED, 2.0),  # a fact is worth nothing to who knows it
        TokenNats(3, PREDICTABLE, 0.0),
    ]
    second = [TokenNats(4, IRREDUCIBLE, 1.5)]
    logprobs = [torch.tensor([-0.75, -3.0, -0.125, -0.25]), torch.tensor([-1.0, -0.0])]
    found = excess([first, second], logprobs)
    assert found.n_tokens == 6
    assert found.floor == pytest.approx(2.0 / 6, **EXACT)
    assert found.loss == pytest.approx(5.125 / 6, **EXACT)
    expected = {PREDICTABLE: 0.375 / 6, REMEMBERED: 0.5, IRREDUCIBLE: -0.25 / 6}
    assert found.parts == pytest.approx(expected, **EXACT)
    assert found.without_facts == pytest.approx(0.125 / 6, **EXACT)
    # Documents are 3.625 and -0.5 over their floors; 4 and 2 tokens at 3.125 / 6 each.
    rests = [3.625 - 4 * 3.125 / 6, -0.5 - 2 * 3.125 / 6]
    by_hand = math.sqrt(2 / 1 * sum(r * r for r in rests)) / 6
    assert found.error == pytest.approx(by_hand, **EXACT)


def test_a_document_that_was_given_no_chance_costs_infinitely_much():
    found = excess([[TokenNats(1, PREDICTABLE, 0.0)]], [torch.tensor([-math.inf, 0.0])])
    assert found.loss == found.total == found.parts[PREDICTABLE] == math.inf


def test_a_single_document_says_nothing_of_its_own_error():
    found = excess([[TokenNats(1, IRREDUCIBLE, 1.0)]], [torch.tensor([-1.5, -0.5])])
    assert found.total == 0.5 and math.isnan(found.error)


@pytest.mark.parametrize("doubt", [1.0, 0.1])
def test_the_error_is_how_far_the_excess_of_other_samples_would_be(doubt):
    # 400 samples of 60 documents: their deviation is known to 1 part in sqrt(800), so
    # four of these are 0.14; errors differ by some 10% among each other, their root
    # mean square hardly. A model that knows nothing (doubt = 1) pays by the length:
    # an error that forgets that lengths are luck, too, is a hundred times too large.
    texts = list(enumerate_documents(language, FACTS))
    known = KnownText.of(texts, TOKENIZER)
    logprobs = known.logprobs(reader(TRUTH, doubt))
    p = torch.tensor([math.exp(-d.floor) for d in texts])
    samples: list[Excess] = []
    for drawn in torch.multinomial(p, 400 * 60, True).view(400, 60).tolist():
        sample = [known.accounts[i] for i in drawn], [logprobs[i] for i in drawn]
        samples.append(excess(*sample))
    errors = torch.tensor([s.error for s in samples]).square().mean().sqrt().item()
    spread = torch.tensor([s.total for s in samples]).std().item()
    assert errors == pytest.approx(spread, rel=0.14)


@pytest.mark.parametrize("rows", [[], [[-1.0]], [[-1.0] * 3], [[-1.0] * 2] * 2])
def test_scores_of_other_documents_are_refused(rows):
    with pytest.raises(ValueError, match="logprobs must be for each document as many"):
        excess([[TokenNats(1, IRREDUCIBLE, 1.0)]], [torch.tensor(row) for row in rows])


def test_no_documents_have_no_excess():
    with pytest.raises(ValueError, match="logprobs must be"):
        excess([], [])


def test_tokens_that_cross_choices_are_refused():
    crossing = Tokenizer.train(" Bo" * 9, 262)
    assert len(crossing.encode(" Bo")) == 1
    with pytest.raises(ValueError, match="attributed_nats"):
        KnownText.of(enumerate_documents(two_letters), crossing)


def two_letters(r):
    r.choose(Menu((" B", " C")))
    r.write("o")


# --- scoring whole documents --------------------------------------------------------


CONTEXT = 16
DOCUMENTS = [[5, 6, 7, 8], [9], [], [1, 2, 3] * 4, [0, 4], list(range(14)), [9]]


def spread_model(vocab_size: int = 29, context: int = 256) -> GPT:
    """A float64 model with opinions: large weights, so that errors would show."""
    torch.manual_seed(1)
    config = GPTConfig(vocab_size, n_layer=2, n_head=2, n_embd=16, context=context)
    model = GPT(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4)
    return model


@torch.no_grad()
def alone(model: GPT, document: list[int], eot: int) -> Tensor:
    """By definition: the end of text, the document, and each next token in turn."""
    row = [eot, *document, eot]
    logits = model(torch.tensor([row[:-1]]))[0].log_softmax(-1)
    return logits[torch.arange(len(row) - 1), row[1:]]


@pytest.mark.parametrize("B", [1, 2, 3, 64])
@pytest.mark.parametrize("eot", [0, 28])
def test_each_document_is_scored_as_if_it_were_alone(B, eot):
    model = spread_model(context=CONTEXT)
    found = document_logprobs(model, DOCUMENTS, eot, B)
    assert [len(row) for row in found] == [len(d) + 1 for d in DOCUMENTS]
    for row, document in zip(found, DOCUMENTS, strict=True):
        expected = alone(model, document, eot)
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_asked_in_evaluation_mode_and_left_in_its_own(training):
    model = reader(TRUTH).train(training)
    KNOWN.logprobs(model)
    assert model.training is training and not any(model.modes)
    gpt = spread_model(context=CONTEXT).train(training)
    with pytest.raises(IndexError):  # the embedding has no such row
        document_logprobs(gpt, [[1], [29]], eot=0)
    assert gpt.training is training and gpt.layers[0].training is training


def test_scores_keep_no_gradients_and_half_precision_is_scored_in_single():
    model = spread_model().bfloat16()
    (row,) = document_logprobs(model, [[1, 2]], eot=0)
    assert row.dtype == torch.float32 and not row.requires_grad
    with torch.no_grad():
        logits = model(torch.tensor([[0, 1, 2, 0]])).float().log_softmax(-1)[0]
    assert row.equal(logits[torch.arange(3), [1, 2, 0]])


def test_documents_may_fill_the_context_and_no_more():
    model = spread_model(context=CONTEXT)
    (row,) = document_logprobs(model, [[1] * (CONTEXT - 2)], eot=0)
    assert row.shape == (CONTEXT - 1,)
    with pytest.raises(ValueError, match="documents must be at most 14 tokens, got 15"):
        document_logprobs(model, [[1], [1] * (CONTEXT - 1)], eot=0)


def test_no_documents_have_no_scores():
    assert document_logprobs(spread_model(), [], eot=0) == []


@pytest.mark.parametrize("B", [0, -1, 2.0])
def test_batches_of_no_documents_are_refused(B):
    with pytest.raises(ValueError, match="B must be an int of at least 1"):
        document_logprobs(spread_model(), [[1]], eot=0, B=B)
