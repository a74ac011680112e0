"""Preferences from text to a trained model: batches, references, and loops."""

import copy
import math
import signal

import pytest
import torch

from minillm.alignment.dpo import dpo_loss
from minillm.alignment.feedback import Feedback, from_pairs, mismatch
from minillm.alignment.kto import kto_loss
from minillm.alignment.logprobs import sequence_logprobs
from minillm.alignment.online_dpo import iterative_dpo, online_dpo, spin
from minillm.alignment.own_responses import (
    Ask,
    against_own,
    as_rows,
    ask_model,
    frozen_copy,
    judged_pairs,
    require_other,
    sampled_kl,
)
from minillm.alignment.preference_data import (
    PairBatch,
    PreferencePairs,
    encode_preferences,
    encode_response,
    reference_logprobs,
    stack,
)
from minillm.alignment.preference_loop import PreferConfig, dpo, prefer
from minillm.alignment.preference_losses import hinge_loss, ipo_loss
from minillm.alignment.reference_free import cpo_loss, orpo_loss, simpo_loss
from minillm.alignment.scored import Scored
from minillm.data import Encoded, Message, Tokenizer, conversation, encode_prompt
from minillm.model import GPT, GPTConfig, Sampling
from minillm.training import TrainingInterrupted
from minillm.world import World
from minillm.world.instructions import instructions

TOKENIZER = Tokenizer(merges=())
TRIPLES = [
    ("2+2", "4", "five"),
    ("say hello", "hello there", "no"),
    ("3+3, please", "6", "6, as I think"),
    ("who?", "Mira", "nobody at all"),
    ("again", "yes", "not again"),
]
ROWS = encode_preferences(TOKENIZER, TRIPLES)


def small(seed: int = 0, context: int = 96) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, 1, 2, n_embd=16, context=context))


def pairs_of(rows=ROWS, B: int = 5, **settings) -> PreferencePairs:
    return PreferencePairs(rows, 96, B, TOKENIZER.pad, **settings)


# Text to rows


def test_only_the_response_and_its_end_are_targets_after_one_common_prompt():
    for (prompt, *said), row in zip(TRIPLES, ROWS, strict=True):
        start = encode_prompt(TOKENIZER, conversation(prompt))
        for text, (ids, mask) in zip(said, row, strict=True):
            assert ids[: len(start)] == start and not any(mask[: len(start)])
            targets = [i for i, m in zip(ids, mask, strict=True) if m]
            assert TOKENIZER.decode(targets) == text + "<|im_end|>"


def test_what_the_assistant_said_before_is_prompt_and_no_target():
    """It would cancel in DPO's margin, and corrupt rewards and means (I3)."""
    chat = [*conversation("hi", "hello"), Message("user", "and now?")]
    ids, mask = encode_response(TOKENIZER, chat, "bye")
    targets = [i for i, m in zip(ids, mask, strict=True) if m]
    assert TOKENIZER.decode(targets) == "bye<|im_end|>"
    ((chosen, rejected),) = encode_preferences(TOKENIZER, [(chat, "bye", "hm")])
    assert chosen == (ids, mask) and sum(rejected.mask) == 3


def test_a_tie_is_no_preference():
    with pytest.raises(ValueError, match="rejected must be another text than chosen"):
        encode_preferences(TOKENIZER, [("2+2", "4", "4")])


def test_prompt_tokens_cancel_in_the_margin_but_not_in_the_rewards():
    model, ref = small(0), small(1)
    rows = [row for pair in ROWS for row in pair]
    # to the end of the turn; the template's line break behind it is no response
    ends = [max(i for i, m in enumerate(mask) if m) for _, mask in rows]
    everything = [
        Encoded(ids[: end + 1], [False] + [True] * end)
        for (ids, _), end in zip(rows, ends, strict=True)
    ]
    right, wrong = (
        [reference_logprobs(m, r, TOKENIZER.pad).view(-1, 2).T for m in (model, ref)]
        for r in (rows, everything)
    )
    margins = [
        dpo_loss(*policy, *anchor, beta=0.3) for policy, anchor in (right, wrong)
    ]
    torch.testing.assert_close(*margins, rtol=1e-4, atol=1e-5)
    rewards = [(policy - anchor) for policy, anchor in (right, wrong)]
    assert (rewards[0] - rewards[1]).abs().min() > 0.01


# Rows to batches


def test_a_batch_has_all_chosen_rows_first_and_keeps_pairs_together():
    pairs = pairs_of(B=3, seed=1)
    tokens, mask = (getattr(pairs[0], name) for name in ("tokens", "mask"))
    for place, i in enumerate(pairs.indices(0)):
        for row, (ids, targets) in zip((place, place + 3), ROWS[i], strict=True):
            assert tokens[row].tolist()[: len(ids)] == ids
            assert mask[row].tolist()[: len(ids)] == targets
            assert (tokens[row, len(ids) :] == TOKENIZER.pad).all()
            assert not mask[row, len(ids) :].any()


def test_each_pair_comes_once_an_epoch_and_the_same_step_gives_the_same_batch():
    pairs = pairs_of(B=2, seed=3)
    for epoch in range(2):
        seen = [pairs.indices(step) for step in range(5)]
        flat = [i for which in seen for i in which][5 * epoch : 5 * epoch + 5]
        assert sorted(flat) == [0, 1, 2, 3, 4]
    assert pairs[7].tokens.equal(pairs_of(B=2, seed=3)[7].tokens)
    orders = {tuple(pairs_of(seed=s).indices(0)) for s in range(5)}
    assert len(orders) > 1


def test_scores_do_not_depend_on_the_padding_or_on_who_else_is_in_the_batch():
    model = small().double()
    together = pairs_of()[0].score(model)
    for place, i in enumerate(pairs_of().indices(0)):
        alone = PairBatch(*stack(ROWS[i], TOKENIZER.pad)).score(model)
        got = together.policy[[place, place + 5]]
        torch.testing.assert_close(got, alone.policy, rtol=1e-10, atol=1e-10)
        assert together.lengths[[place, place + 5]].equal(alone.lengths)


def test_sums_and_means_are_those_of_sequence_logprobs():
    model, batch = small(), pairs_of()[0]
    scored = batch.score(model)
    args = (model(batch.tokens), batch.tokens, batch.mask)
    torch.testing.assert_close(torch.cat(scored.policy_sums), sequence_logprobs(*args))
    means = sequence_logprobs(*args, average=True)
    torch.testing.assert_close(torch.cat(scored.policy_means), means)


def test_a_loss_that_needs_a_reference_says_so_where_there_is_none():
    scored = pairs_of()[0].score(small())
    for wanted in ("sums", "means"):
        with pytest.raises(ValueError, match="ref must be a model for this loss"):
            getattr(scored, wanted)
    with pytest.raises(ValueError, match="ref must be a model"):
        prefer(small(), None, pairs_of(), PreferConfig(steps=1), progress=False)


def test_metrics_are_in_units_of_the_reward_with_and_without_a_reference():
    policy, lengths = torch.tensor([-4.0, -6.0, -8.0, -2.0]), torch.tensor([2, 2, 4, 1])
    with_ref = Scored(policy, lengths, torch.tensor([-5.0, -5.0, -5.0, -5.0]))
    found = with_ref.metrics(beta=0.5)
    assert found["reward"] == 0.0 and found["rejected_reward"] == 0.0
    assert found["accuracy"] == 0.5  # +0.5 over -1.5; -0.5 under +1.5
    assert found["chosen_logprob"] == -5.0 and found["rejected_logprob"] == -5.0
    without = Scored(policy, lengths).metrics(beta=0.5)
    assert without["reward"] == -1.25 and without["margin"] == -0.25
    assert without["accuracy"] == 0.25  # a tie, and a loss


# The reference


def test_reference_log_probs_are_those_of_scoring_and_have_no_gradient():
    model = small()
    model.train()
    pairs = pairs_of(B=2).with_reference(model)
    assert model.training, "the mode is as it was"
    assert not pairs.ref.requires_grad and all(
        p.grad is None for p in model.parameters()
    )
    for step in range(4):
        batch = pairs[step]
        torch.testing.assert_close(batch.ref, batch.score(model).policy.detach())


def test_a_model_is_a_valid_reference_of_its_own_because_it_is_scored_before():
    logs = []
    for own in (True, False):
        model = small()
        ref = model if own else frozen_copy(model)
        config = PreferConfig(steps=6, lr=3e-3)
        logs.append(prefer(model, ref, pairs_of(), config, progress=False))
    assert logs[0].records == logs[1].records
    losses = logs[0].column("loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < 0.65
    assert logs[0].column("grad_norm")[0] > 0


def test_a_reference_that_moves_along_is_refused_where_it_is_asked_in_training():
    model = small()
    asked = list(instructions(World().lore, 2))
    shallow = copy.copy(model)  # another object, the same weights
    tied = small(1)
    tied.norm.weight = model.norm.weight
    for ref in (model, shallow, tied):
        with pytest.raises(ValueError, match="ref must be a model of its own"):
            online_dpo(model, ref, TOKENIZER, asked, first, PreferConfig(steps=1))
        with pytest.raises(ValueError, match="ref must be a model of its own"):
            iterative_dpo(model, ref, TOKENIZER, asked, first, PreferConfig(steps=1))
        with pytest.raises(ValueError, match="ref must be a model of its own"):
            sampled_kl(model, ref, TOKENIZER, asked)
    require_other(model, frozen_copy(model))
    adapted = small().requires_grad_(False)  # shares weights that nobody trains
    require_other(adapted, copy.copy(adapted))


def test_a_frozen_copy_stays_while_the_model_learns():
    model = small()
    ref = frozen_copy(model)
    before = reference_logprobs(ref, pairs_of().flat, TOKENIZER.pad)
    prefer(model, ref, pairs_of(), PreferConfig(steps=3, lr=1e-2), progress=False)
    after = reference_logprobs(ref, pairs_of().flat, TOKENIZER.pad)
    assert after.equal(before)
    moved = reference_logprobs(model, pairs_of().flat, TOKENIZER.pad)
    assert (moved - before).abs().max() > 0.1


# The loop

LOSSES = {
    "dpo": (dpo, 0.3),
    "hinge": (lambda s, beta: hinge_loss(*s.sums, beta), 0.3),
    "ipo": (lambda s, beta: ipo_loss(*s.means, beta), 0.3),
    "simpo": (lambda s, beta: simpo_loss(*s.policy_means, beta, 0.5), 2.0),
    "orpo": (lambda s, beta: orpo_loss(*s.policy_means, beta), 0.5),
    "cpo": (lambda s, beta: cpo_loss(*s.policy_sums, beta), 0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_and_learns_the_order_of_its_pairs(name):
    loss, beta = LOSSES[name]
    ref = None if name in ("simpo", "orpo", "cpo") else small()
    config = PreferConfig(steps=25, beta=beta, lr=1e-2, max_norm=10.0)
    log = prefer(small(), ref, pairs_of(), config, loss, progress=False)
    losses, margins = log.column("loss"), log.column("margin")
    assert losses[-1] < 0.8 * losses[0]
    assert margins[-1] > margins[0]
    assert log.column("accuracy")[-1] >= 0.8
    assert log.column("step") == [*range(25)]


def test_pairs_that_were_scored_before_need_no_reference_now():
    model = small()
    pairs = pairs_of().with_reference(model)
    log = prefer(model, None, pairs, PreferConfig(steps=2), progress=False)
    assert log.column("loss")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_weights_that_are_frozen_stay_and_the_others_move():
    model = small()
    model.embed_tokens.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    prefer(model, model, pairs_of(), PreferConfig(steps=2), progress=False)
    after = model.state_dict()
    assert after["embed_tokens.weight"].equal(before["embed_tokens.weight"])
    assert not after["norm.weight"].equal(before["norm.weight"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model must be trainable"):
        prefer(model, model, pairs_of(), PreferConfig(steps=2), progress=False)


def test_more_can_be_measured_every_so_often():
    called = []

    def measure():
        called.append(1)
        return {"kl": 0.5}

    config = PreferConfig(steps=7)
    settings = {"progress": False, "measure": measure, "every": 3}
    log = prefer(small(), small(), pairs_of(), config, **settings)
    assert log.column("kl") == [0.5] * 3 and len(called) == 3
    assert [r["step"] for r in log.records if "kl" in r] == [0, 3, 6]


def test_ctrl_c_ends_after_the_step_in_hand_and_the_model_keeps_it():
    model, before = small(), small()

    def press():
        signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(TrainingInterrupted, match="after step 1 of 9"):
        prefer(
            model, before, pairs_of(), PreferConfig(9), progress=False, measure=press
        )
    config = PreferConfig(9)
    log = prefer(before, small(), pairs_of(), config, progress=False)
    assert len(log.records) == 9
    moved = (model.lm_head.weight - small().lm_head.weight).abs().max()
    assert moved > 0, "the step was taken"


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights():
    model = small()

    def broken(s, beta):
        return math.nan * s.policy_sums[0]

    with pytest.raises(FloatingPointError, match="loss must stay finite"):
        prefer(model, model, pairs_of(), PreferConfig(2), broken, progress=False)
    assert model.lm_head.weight.equal(small().lm_head.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": []}, "encoded must be at least 1"),
        ({"B": 0}, "B must be at least 1"),
        ({"ref": torch.zeros(5)}, "ref must be of shape"),
        ({"rows": [(ROWS[0][0], Encoded([5, 6], [False, False]))]}, r"encoded\[1\]"),
    ],
)
def test_impossible_pairs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(**settings)


def test_rows_that_the_model_cannot_take_are_refused_before_training():
    with pytest.raises(ValueError, match="T must be at most 64"):
        prefer(small(context=64), None, pairs_of(), PreferConfig(1))
    with pytest.raises(ValueError, match="at most T"):
        PreferencePairs(ROWS, 10, 2, TOKENIZER.pad)
    for settings in ({"steps": 0}, {"beta": 0.0}, {"lr": -1.0}, {"warmup": -1}):
        with pytest.raises(ValueError, match="must be"):
            PreferConfig(**{"steps": 1} | settings)


# KTO: single responses


def test_partners_have_the_prompt_of_the_row_and_a_response_to_another():
    """Rows made from pairs stand in twos: the next row is no mismatch."""
    rows, labels = from_pairs(ROWS)
    assert labels == [True, False] * 5
    for i, partner in enumerate(mismatch(rows, T=96)):
        prompt = encode_prompt(TOKENIZER, conversation(TRIPLES[i // 2][0]))
        assert partner.ids[: len(prompt)] == prompt
        said = [t for t, m in zip(*partner, strict=True) if m]
        text = TOKENIZER.decode(said).removesuffix("<|im_end|>")
        assert text == TRIPLES[(i // 2 + 1) % 5][1]
    assert all(len(row.ids) <= 30 for row in mismatch(rows[:4], T=30))
    with pytest.raises(ValueError, match="prompts must be at least 2"):
        mismatch(rows[:2], T=96)


def test_feedback_is_scored_with_partners_and_without_their_gradient():
    rows, labels = from_pairs(ROWS)
    model, ref = small(0), small(1)
    feedback = Feedback(rows, labels, 96, 4, TOKENIZER.pad).with_reference(ref)
    batch = feedback[0]
    scored = batch.score(model)
    which = feedback.pairs.indices(0)
    assert scored.desirable.tolist() == [labels[i] for i in which]
    for side, (policy, anchor) in enumerate(
        (
            (scored.policy, scored.ref),
            (scored.policy_mismatched, scored.ref_mismatched),
        )
    ):
        flat = [feedback.pairs.rows[i][side] for i in which]
        for found, m in ((policy, model), (anchor, ref)):
            expected = reference_logprobs(m, flat, TOKENIZER.pad)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)
    assert scored.policy.requires_grad and not scored.policy_mismatched.requires_grad


def test_kto_learns_from_thumbs_alone():
    rows, labels = from_pairs(ROWS)
    feedback = Feedback(rows, labels, 96, 10, TOKENIZER.pad)
    config = PreferConfig(steps=25, beta=0.3, lr=1e-2, max_norm=10.0)
    model = small()

    def loss(s, beta):
        return kto_loss(*s.judged, beta)

    log = prefer(model, model, feedback, config, loss, progress=False)
    assert log.column("loss")[0] == pytest.approx(0.5, abs=1e-5)
    assert log.column("loss")[-1] < 0.35
    assert log.column("accuracy")[0] == 0.5 and log.column("accuracy")[-1] >= 0.9
    assert min(log.column("mismatched_kl")) >= 0
    with pytest.raises(ValueError, match="ref must be a model"):
        prefer(model, None, feedback, config, loss, progress=False)
    with pytest.raises(ValueError, match="desirable must be 10 labels"):
        Feedback(rows, labels[:3], 96, 4, TOKENIZER.pad)


# The model's own responses

ASK = Ask(max_new_tokens=6, B=8)


def first(question, a, b) -> str:
    return "first"


def letters(text: str) -> int:
    return sum(c.isascii() and c.isalpha() for c in text)


def likes_letters(question, a, b) -> str:
    ahead = letters(a) - letters(b)
    return "tie" if ahead == 0 else "first" if ahead > 0 else "second"


@pytest.fixture(scope="module")
def asked():
    return list(instructions(World().lore, 16, "preference loop"))


def test_pairs_are_the_sampled_tokens_in_the_order_of_the_verdict(asked):
    model = small(context=192)
    rollouts = ask_model(model, TOKENIZER, asked, ASK, ASK.dice(), copies=2)
    texts, rows = rollouts.texts(TOKENIZER), as_rows(rollouts)
    seen = []

    def judge(question, a, b):
        seen.append((question, a, b))
        return ("first", "second", "tie")[len(seen) % 3]

    pairs = judged_pairs(model, TOKENIZER, asked, judge, ASK, ASK.dice())
    assert seen == [
        (i.question, a, b)
        for i, a, b in zip(asked, texts[::2], texts[1::2], strict=True)
    ]
    verdicts = [(n + 1) % 3 for n in range(16)]
    expected = [
        (rows[2 * n + v], rows[2 * n + 1 - v])
        for n, v in enumerate(verdicts)
        if v < 2  # 2 is a tie
    ]
    assert pairs == expected
    for (ids, mask), text in zip(rows, texts, strict=True):
        prompt = mask.index(True)
        assert all(mask[prompt:]) and not any(mask[:prompt])
        assert len(ids) - prompt <= 6
        assert text == TOKENIZER.decode([i for i in ids[prompt:] if i != rollouts.stop])


def test_equal_responses_are_never_shown_to_the_judge(asked):
    cold = Ask(max_new_tokens=4, sampling=Sampling(temperature=1e-6))
    model = small(context=192)

    def judge(question, a, b):
        raise AssertionError(f"shown {a!r} and {b!r}")

    assert judged_pairs(model, TOKENIZER, asked, judge, cold, cold.dice()) == []


def said_letters(model, asked) -> int:
    rollouts = ask_model(model, TOKENIZER, asked, ASK, ASK.dice(), copies=4)
    return sum(map(letters, rollouts.texts(TOKENIZER)))


def test_online_dpo_moves_the_policy_to_what_the_judge_likes(asked):
    model, again = small(context=192), small(context=192)
    ref, config = frozen_copy(model), PreferConfig(steps=20, beta=0.1, lr=1e-2)
    rest = (ref, TOKENIZER, asked, likes_letters, config, ASK)
    log = online_dpo(model, *rest, progress=False)
    assert log.column("loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(1 <= n <= 8 for n in log.column("pairs"))
    later = [abs(loss - math.log(2)) for loss in log.column("loss")[5:]]
    assert max(later) > 0.01, "a reference that moves along would keep ln 2"
    assert said_letters(model, asked) > 1.3 * said_letters(ref, asked)
    assert sampled_kl(model, ref, TOKENIZER, asked, ASK) > 0.2
    repeated = online_dpo(again, *rest, progress=False)
    assert repeated.records == log.records, "the seed decides all"


def test_the_sampled_kl_of_the_reference_itself_is_zero(asked):
    model = small(context=192)
    assert sampled_kl(model, frozen_copy(model), TOKENIZER, asked, ASK) == 0.0


def test_a_judge_who_never_decides_is_named(asked):
    model = small(context=192)
    ref, tie = frozen_copy(model), lambda question, a, b: "tie"
    for loop in (online_dpo, iterative_dpo):
        with pytest.raises(ValueError, match="pairs must be at least 1 that is no tie"):
            loop(model, ref, TOKENIZER, asked, tie, PreferConfig(1), ask=ASK)


def test_rounds_of_iterative_dpo_keep_the_first_reference(asked):
    model = small(context=192)
    ref, config = frozen_copy(model), PreferConfig(steps=8, lr=1e-2)
    rest = (TOKENIZER, asked, likes_letters, config, 2, ASK)
    logs = iterative_dpo(model, ref, *rest, progress=False)
    starts = [log.column("loss")[0] for log in logs]
    assert starts[0] == pytest.approx(math.log(2), abs=1e-5)
    assert starts[1] != pytest.approx(math.log(2), abs=1e-3), "it has moved away"
    assert len(logs) == 2 and len(logs[0].records) == 8


def test_spin_begins_each_round_at_its_own_opponent_and_favours_demonstrations(asked):
    model = small(context=192)
    config = PreferConfig(steps=8, lr=1e-2)
    good = [encode_response(TOKENIZER, i.prompt, i.good) for i in asked]
    before = reference_logprobs(model, good, TOKENIZER.pad).mean()
    logs = spin(model, TOKENIZER, asked, config, 2, ASK, progress=False)
    for log in logs:
        assert log.column("loss")[0] == pytest.approx(math.log(2), abs=1e-5)
        assert log.column("margin")[-1] > 0
    after = reference_logprobs(model, good, TOKENIZER.pad).mean()
    assert after > before


def test_what_the_model_says_like_the_demonstration_is_no_pair(asked):
    good = [encode_response(TOKENIZER, i.prompt, i.good) for i in asked[:3]]
    ends = [max(i for i, m in enumerate(mask) if m) + 1 for _, mask in good]
    same = [
        Encoded(*(x[:end] for x in row)) for row, end in zip(good, ends, strict=True)
    ]
    cut_off = Encoded(*(part[: ends[1] - 2] for part in good[1]))
    other = Encoded([*same[2].ids[:-2], 97], same[2].mask[:-1])
    rows = against_own(TOKENIZER, asked[:3], [same[0], cut_off, other])
    assert rows == [(good[2], other)]


def test_the_expected_gradient_of_spin_at_the_start_is_that_of_sft_times_half_beta():
    """The policy's own responses add nothing in the mean; at the demonstrations'
    distribution there is nothing left to learn."""
    demonstrations = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    start = torch.tensor([0.2, -0.5, 0.9], dtype=torch.float64)
    for logits in (start, demonstrations.log()):
        logits = logits.clone().requires_grad_()
        logp = logits.log_softmax(-1)
        ref, policy = logp.detach(), logp.detach().exp()
        i, j = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
        losses = dpo_loss(logp[i], logp[j], ref[i], ref[j], beta=0.4)
        expected = (demonstrations[i] * policy[j] * losses).sum()
        (spin_gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
        (sft,) = torch.autograd.grad(-(demonstrations * logp).sum(), logits)
        torch.testing.assert_close(spin_gradient, 0.2 * sft)
    assert spin_gradient.abs().max() < 1e-12
