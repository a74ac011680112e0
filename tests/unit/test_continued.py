"""Pre-training that goes on: nothing is lost when words are added, less with replay."""

import copy
import math
import random

import pytest
import torch

from minillm.data.batches import Windows
from minillm.data.bpe import encode, merge
from minillm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minillm.finetuning import extend_tokenizer, grow_vocabulary, piece_shares, rewarmed
from minillm.finetuning.forgetting import Replay
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, minimise, next_token_loss
from minillm.training.schedules import SCHEDULES

OLD_WORDS = ("the", "then", "there", "red", "reed", "deer")
NEW_WORDS = ("zinc", "zincic", "quiz", "quizzic", "the", "deed")


def text_of(words, n, seed):
    """A chain of words: each is followed by one of two, so there is much to learn."""
    dice, place, said = random.Random(seed), 0, []
    for _ in range(n):
        said.append(words[place])
        place = (2 * place + dice.randrange(2)) % len(words)
    return " ".join(said)


OLD_TEXT, NEW_TEXT = text_of(OLD_WORDS, 600, 0), text_of(NEW_WORDS, 600, 1)
OLD = Tokenizer.train(OLD_TEXT, vocab_size=266)
NEW = extend_tokenizer(OLD, NEW_TEXT, vocab_size=276)
FIRST_NEW, K = 256 + len(OLD.merges), 10  # the ids that are new, and how many


def small(tied=True, V=OLD.vocab_size, seed=0):
    torch.manual_seed(seed)
    shape = GPTConfig(V, n_layer=1, n_head=2, n_embd=16, context=32, tied=tied)
    return GPT(shape)


def moved(ids):
    """Old ids in the new numbering: special tokens stand behind the new merges."""
    return torch.where(ids >= FIRST_NEW, ids + K, ids)


def test_learning_on_equals_learning_at_once_on_the_same_text():
    text = OLD_TEXT + NEW_TEXT
    part, whole = Tokenizer.train(text, 266), Tokenizer.train(text, 280)
    assert extend_tokenizer(part, text, 280) == whole
    assert extend_tokenizer(part, text, 266) == part


def test_old_ids_keep_their_meaning_and_special_tokens_move_behind_the_new():
    assert NEW.vocab_size == 276
    assert NEW.merges[: len(OLD.merges)] == OLD.merges
    for name in SPECIAL_TOKENS:
        assert NEW.special_tokens[name] == OLD.special_tokens[name] + K
    for id_ in range(OLD.vocab_size):
        new_id = moved(torch.tensor([id_]))
        assert NEW.decode_bytes(new_id) == OLD.decode_bytes([id_])


def test_new_merges_only_join_what_the_old_ones_left():
    for text in (NEW_TEXT, OLD_TEXT, "a quiz, then nothing - ü"):
        ids = OLD.encode(text)
        by_hand = ids
        for id_, pair in enumerate(NEW.merges[len(OLD.merges) :], FIRST_NEW):
            by_hand = merge(by_hand, pair, id_)
        assert NEW.decode(NEW.encode(text)) == text
        assert NEW.encode(text) == encode(text, NEW.merges) == by_hand
    assert len(NEW.encode(NEW_TEXT)) < len(OLD.encode(NEW_TEXT))


def test_shares_spell_each_new_token_by_the_old_ones():
    A = piece_shares(OLD, NEW)
    assert A.shape == (K, OLD.vocab_size)
    torch.testing.assert_close(A.sum(1), torch.ones(K))
    for j in range(K):
        spelled = OLD.encode(NEW.decode([FIRST_NEW + j]))
        for id_ in set(spelled):
            torch.testing.assert_close(
                A[j, id_].item(), spelled.count(id_) / len(spelled), rtol=1e-6, atol=0
            )
    assert piece_shares(OLD, OLD).shape == (0, OLD.vocab_size)


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_reads_old_text_as_before(tied):
    model = small(tied).double()
    before = copy.deepcopy(model.state_dict())
    grown = grow_vocabulary(model, OLD, NEW)
    tokens = torch.randint(0, OLD.vocab_size, (3, 20))  # special tokens among them
    assert torch.equal(grown.hidden(moved(tokens)), model.hidden(tokens)), (
        "the same rows and the same sums, bit for bit"
    )
    old, new = model(tokens), grown(moved(tokens))
    kept = new[..., moved(torch.arange(OLD.vocab_size))]
    torch.testing.assert_close(kept, old, rtol=1e-12, atol=1e-14)
    # By the same numbers relative log-probabilities stay, and all fall by one amount.
    lost = (
        old.log_softmax(-1)
        - new.log_softmax(-1)[..., moved(torch.arange(OLD.vocab_size))]
    )
    torch.testing.assert_close(lost, lost[..., :1].expand_as(lost), rtol=1e-9, atol=0)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_is_whole(tied):
    model = small(tied)
    model.embed_tokens.weight.requires_grad_(False)
    grown = grow_vocabulary(model, OLD, NEW)
    assert grown.config.vocab_size == grown.lm_head.out_features == NEW.vocab_size
    assert (grown.lm_head.weight is grown.embed_tokens.weight) == tied
    assert not grown.embed_tokens.weight.requires_grad, "frozen stays frozen"
    assert grown.lm_head.weight.requires_grad == (not tied)
    again = small(tied, V=NEW.vocab_size)
    again.load_state_dict(grown.state_dict())
    tokens = torch.arange(FIRST_NEW, FIRST_NEW + K)[None]
    torch.testing.assert_close(again(tokens), grown(tokens))
    assert grow_vocabulary(model, OLD, OLD)(tokens[:, :1]).shape[-1] == OLD.vocab_size
    half = grow_vocabulary(model.bfloat16(), OLD, NEW)
    assert half.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_new_tokens_take_a_geometric_mean_each_and_no_more_than_the_bound(scale):
    model = small(tied=False).double()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    A = piece_shares(OLD, NEW).double()
    tokens = torch.tensor([OLD.encode("then quiz zinc the")])
    old = model(tokens).log_softmax(-1)
    new = grow_vocabulary(model, OLD, NEW)(moved(tokens)).log_softmax(-1)
    G = (old @ A.T).exp().sum(-1)
    taken = new[..., FIRST_NEW : FIRST_NEW + K].exp().sum(-1)
    torch.testing.assert_close(taken, G / (1 + G), rtol=1e-5, atol=0)  # A was float32
    lost = old[..., 0] - new[..., 0]
    torch.testing.assert_close(lost, G.log1p(), rtol=1e-5, atol=1e-12)
    assert (lost <= A.sum(0).max().log1p()).all()


def test_the_bound_is_reached_where_one_piece_is_certain():
    new = Tokenizer(merges=((97, 97), (256, 256)))  # "aa" and "aaaa", of one piece
    old = Tokenizer(merges=())
    model = small(tied=False, V=old.vocab_size).double()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        h = model.hidden(torch.tensor([[1]]))[0, 0]
        model.lm_head.weight[97] = 100 * h / h.square().sum()
    logprobs = grow_vocabulary(model, old, new)(torch.tensor([[1]])).log_softmax(-1)
    bound = piece_shares(old, new).sum(0).max().log1p().item()
    assert bound == pytest.approx(math.log(3), rel=1e-6)
    assert -logprobs[0, 0, 97].item() == pytest.approx(bound, rel=1e-6)


def test_rows_at_random_have_no_bound():
    model = small(tied=False).double()
    tokens = torch.tensor([[1]])
    with torch.no_grad():  # all old logits are -50: softmax does not see it
        h = model.hidden(tokens)[0, 0]
        model.lm_head.weight.copy_((-50 * h / h.square().sum()).expand(266, -1))
    ours = grow_vocabulary(model, OLD, NEW)
    drawn = copy.deepcopy(ours)
    with torch.no_grad():
        drawn.lm_head.weight[FIRST_NEW : FIRST_NEW + K].normal_(std=0.02)
    lost = [
        math.log(1 / 266) - m(tokens).log_softmax(-1)[0, 0, 0].item()
        for m in (ours, drawn)
    ]
    assert lost[0] == pytest.approx(math.log1p(K / 266), rel=1e-6)
    assert lost[1] > 40


def test_a_second_run_warms_up_again():
    for name, plan in SCHEDULES.items():
        one = [plan(step, 8, 3, 0.1) for step in range(8)]
        two = [rewarmed(step, [8, 8], 3, 0.1, plan) for step in range(17)]
        assert two[:16] == one + one, name
        assert two[16] == plan(8, 8, 3, 0.1), "held after the last step"


def nats(model, ids, text):
    """A character, because the larger vocabulary needs fewer tokens for a text."""
    rows = ids[: len(ids) // 32 * 32].view(-1, 32)
    with torch.no_grad():
        return next_token_loss(model(rows), rows).item() * len(ids) / len(text)


def trained(model, batches, steps):
    def loss(step):
        return next_token_loss(model(batches[step].tokens), batches[step].tokens)

    minimise(model, loss, TrainConfig(steps, "adamw", lr=1e-2, warmup=5))
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_replay_the_old_text_is_forgotten_less_and_the_new_is_learned(seed):
    def windows(tokenizer, text):
        return Windows(torch.tensor(tokenizer.encode(text)), 32, 8, seed)

    base = trained(small(seed=seed), windows(OLD, OLD_TEXT), 150)
    knew = nats(base, windows(OLD, OLD_TEXT).stream, OLD_TEXT)
    grown = grow_vocabulary(base, OLD, NEW)
    old, new = windows(NEW, OLD_TEXT), windows(NEW, NEW_TEXT)
    before = nats(grown, new.stream, NEW_TEXT)
    rise, left = [], []
    for batches in (new, Replay(new, old, every=4)):
        model = trained(copy.deepcopy(grown), batches, 60)
        rise.append(nats(model, old.stream, OLD_TEXT) - knew)
        left.append(nats(model, new.stream, NEW_TEXT))
    assert rise[1] < rise[0] / 4
    assert max(left) < before / 4


def test_doors_say_what_is_wrong():
    other = Tokenizer(OLD.merges[::-1][:0])
    with pytest.raises(ValueError, match="vocab_size"):
        extend_tokenizer(OLD, NEW_TEXT, OLD.vocab_size - 1)
    with pytest.raises(ValueError, match="more text"):
        extend_tokenizer(OLD, "ab", OLD.vocab_size + 5)
    with pytest.raises(ValueError, match="at least one character"):
        extend_tokenizer(OLD, "", OLD.vocab_size + 1)
    for wrong in (other, Tokenizer(NEW.merges, (*SPECIAL_TOKENS, "<|x|>"))):
        with pytest.raises(ValueError, match="an extension"):
            piece_shares(OLD, wrong)
    with pytest.raises(ValueError, match="of 276 tokens"):
        grow_vocabulary(small(), NEW, NEW)
    for runs, step in (([], 0), ([3, 0], 0), ([3], -1)):
        with pytest.raises(ValueError, match=r"runs|step"):
            rewarmed(step, runs, warmup=0)
