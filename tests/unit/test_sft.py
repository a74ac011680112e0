"""Fine-tuning: prompts are seen and never scored, and a model learns to stop."""

import signal
from dataclasses import replace

import pytest
import torch

from minillm.data import Message, Tokenizer, conversation
from minillm.data.chat import Encoded, encode_chat, encode_prompt, stop_token
from minillm.data.examples import Examples
from minillm.finetuning import finetune, respond, sft_config, sft_examples
from minillm.model import GPT, GREEDY, GPTConfig, Sampling, generate
from minillm.training import TrainConfig, TrainingInterrupted, next_token_loss

TOKENIZER = Tokenizer(merges=())
CONFIG = GPTConfig(TOKENIZER.vocab_size, n_layer=2, n_head=2, n_embd=32, context=96)
PAIRS = [("2+2", " 4"), ("a longer question, 3+3", " 6, as I think"), ("", "")]


def model_of(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(CONFIG)


def examples_of(pairs=PAIRS, B: int = 3, seed: int = 0) -> Examples:
    return Examples(sft_examples(TOKENIZER, pairs), 96, B, TOKENIZER.pad, seed)


# --- what is scored -----------------------------------------------------------------


def gradient_of_logits(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the loss pulls (B T V), and the loss."""
    logits = model_of().double()(batch.tokens).detach().requires_grad_()
    loss = next_token_loss(logits, *batch)
    loss.backward()
    return logits.grad, loss


def test_the_gradient_is_exactly_zero_wherever_the_assistant_does_not_speak():
    tokens, mask = batch = examples_of()[0]
    gradient, _ = gradient_of_logits(batch)
    scored = mask.roll(-1, dims=1)  # position t scores the token at t + 1
    scored[:, -1] = False
    assert (gradient[~scored] == 0).all()
    assert (gradient[scored].abs().sum(-1) > 0).all()
    assert scored.sum() == sum(len(answer.encode()) + 1 for _, answer in PAIRS)
    # The last token of the prompt is where the first word of the answer is predicted.
    for row, (prompt, _) in enumerate(PAIRS):
        prompt_ids = encode_prompt(TOKENIZER, conversation(prompt))
        rows = [r for r in tokens.tolist() if r[: len(prompt_ids)] == prompt_ids]
        assert len(rows) == 1, row
        here = tokens.tolist().index(rows[0])
        assert scored[here].nonzero()[0] == len(prompt_ids) - 1


def test_prompts_are_seen():
    """A prompt that is masked from the loss is not hidden from attention (M21d)."""
    one, other = (examples_of([(p, " 4")])[0] for p in ("2+2", "3+3"))
    assert not torch.isclose(gradient_of_logits(one)[1], gradient_of_logits(other)[1])


def test_the_mean_is_over_targets_and_not_over_all_tokens():
    """E2: counting prompts too would shrink the loss by the answer's share."""
    tokens, mask = examples_of()[0]
    logits = model_of().double()(tokens)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    expected = -logprobs[mask[:, 1:]].sum() / mask.sum()
    assert next_token_loss(logits, tokens, mask).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_the_end_of_the_turn_is_a_target_and_padding_is_another_token():
    """M20, E3: one stop token a row is scored, and the loss moves with its logit."""
    tokens, mask = examples_of()[0]
    stop = stop_token(TOKENIZER)
    assert TOKENIZER.pad != stop
    assert (tokens.eq(stop) & mask).sum(1).tolist() == [1, 1, 1]
    logits = torch.zeros(*tokens.shape, TOKENIZER.vocab_size, dtype=torch.float64)
    before = next_token_loss(logits, tokens, mask)
    logits[..., stop] += 1
    assert next_token_loss(logits, tokens, mask) != before


def test_every_turn_of_a_conversation_is_learned_in_one_row():
    chat = [*conversation("a", "bb", system="s"), *conversation("c", "ddd")]
    (encoded,) = sft_examples(TOKENIZER, [chat])
    assert encoded == encode_chat(TOKENIZER, chat)
    assert sum(encoded.mask) == len("bb") + 1 + len("ddd") + 1


def test_pairs_and_conversations_may_be_mixed():
    chat = conversation("hi", "yo")
    one, other = sft_examples(TOKENIZER, [("hi", "yo"), chat])
    assert one == other


@pytest.mark.parametrize("bad", ["hi", ("hi",), ("a", 3), ("a", "b", "c"), []])
def test_what_is_neither_a_pair_nor_a_conversation_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        sft_examples(TOKENIZER, [bad])


# --- training -----------------------------------------------------------------------


def learned(pairs, steps: int = 150, **settings) -> GPT:
    """A model that knows the pairs by heart."""
    model, examples = model_of(), examples_of(pairs, B=len(pairs))
    config = sft_config(examples, lr=5e-3, matrix_lr=0.02, **settings)
    finetune(model, examples, replace(config, steps=steps), progress=False)
    return model


def test_a_model_learns_what_to_say_and_when_to_stop():
    model = learned(PAIRS)
    prompts = [prompt for prompt, _ in PAIRS]
    said = respond(model, TOKENIZER, prompts, max_new_tokens=30)
    assert said == [answer for _, answer in PAIRS]  # the empty one too


def test_a_single_example_teaches_to_stop():
    model = learned(PAIRS[:1], steps=60)
    ids = [encode_prompt(TOKENIZER, conversation(PAIRS[0][0]))]
    made = generate(model, ids, 20, GREEDY, stop_token(TOKENIZER), TOKENIZER.pad)
    assert made.completions()[0] == [*b" 4", stop_token(TOKENIZER)]


def test_without_the_end_of_the_turn_as_a_target_a_model_does_not_stop():
    """The ablation of the test above: what a mask that is one token short does."""
    stop = stop_token(TOKENIZER)
    rows = [
        Encoded(ids, [m and i != stop for i, m in zip(ids, mask, strict=True)])
        for ids, mask in sft_examples(TOKENIZER, PAIRS[:1])
    ]
    model, examples = model_of(), Examples(rows, 96, 1, TOKENIZER.pad)
    config = TrainConfig(steps=60, lr=5e-3, warmup=0)
    finetune(model, examples, config, progress=False)
    (said,) = respond(model, TOKENIZER, [PAIRS[0][0]], max_new_tokens=20)
    assert said.startswith(" 4") and said != " 4"


@pytest.mark.parametrize(
    ("n", "B", "accumulate", "epochs", "steps"),
    [(10, 5, 1, 1, 2), (10, 4, 1, 1, 3), (10, 4, 2, 2, 3), (1, 8, 1, 0.5, 1)],
)
def test_epochs_become_steps_that_see_every_example(n, B, accumulate, epochs, steps):
    examples = examples_of([("a", "b")] * n, B)
    config = sft_config(examples, epochs, accumulate=accumulate, floor=0.1)
    assert config.steps == steps and config.accumulate == accumulate
    assert config.floor == 0.1


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
def test_no_epochs_are_refused(epochs):
    with pytest.raises(ValueError, match="epochs must be"):
        sft_config(examples_of(), epochs)


def test_an_interrupted_run_goes_on_bit_by_bit_and_only_on_the_same_examples(tmp_path):
    def run(folder, on_step=None, **changes):
        model, examples = model_of(), examples_of(B=2, **changes)
        config = sft_config(examples, epochs=8)
        finetune(
            model, examples, config, folder=folder, on_step=on_step, progress=False
        )
        return model

    def press(trainer):
        if trainer.step == 5:
            signal.raise_signal(signal.SIGINT)

    whole = run(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "cut", press)
    with pytest.raises(ValueError, match="data"):
        run(tmp_path / "cut", pairs=[("2+2", " 5"), *PAIRS[1:]])
    resumed = run(tmp_path / "cut")
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert one.equal(two)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Encoded([1] * 97, [True] * 97), "must be at most 96, the model's context"),
        (Encoded([1, 260], [False, True]), "must be below 260, the model's vocab"),
    ],
)
def test_examples_that_the_model_cannot_take_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        finetune(model_of(), Examples([row], 200, 1, 0), progress=False)


# --- answering ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken() -> GPT:
    """Trained a little, so that answers differ and some are cut off."""
    return learned([*PAIRS, ("x", " yyy"), ("z", " " + "w" * 40)], steps=60)


def test_a_prompt_gets_the_same_answer_alone_and_beside_longer_ones(spoken):
    prompts = ["2+2", "x", "a longer question, 3+3", "", "2+2, or something else?"]
    together = respond(spoken, TOKENIZER, prompts, max_new_tokens=20)
    alone = [respond(spoken, TOKENIZER, [p], max_new_tokens=20)[0] for p in prompts]
    assert together == alone
    assert respond(spoken, TOKENIZER, prompts, max_new_tokens=20, B=2) == alone
    assert len(set(together)) > 1


def test_conversations_can_be_asked_and_equal_their_text(spoken):
    prompts = ["2+2", conversation("2+2")]
    one, other = respond(spoken, TOKENIZER, prompts, max_new_tokens=20)
    assert one == other
    longer = [Message("system", "s"), *conversation("a", "b"), Message("user", "2+2")]
    assert len(respond(spoken, TOKENIZER, [longer], max_new_tokens=20)) == 1


def test_an_answer_never_holds_the_mark_of_its_end_and_may_be_cut(spoken):
    said = respond(spoken, TOKENIZER, ["z", "2+2"], max_new_tokens=3)
    assert all("<|im_end|>" not in text for text in said)
    assert len(said[0]) == 3


def test_draws_can_be_repeated(spoken):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        sampling, prompts = Sampling(temperature=2.0), ["a", "b"] * 4
        return respond(spoken, TOKENIZER, prompts, 10, sampling, generator)

    assert drawn(1) == drawn(1) != drawn(2)


def test_nothing_is_said_where_nothing_is_asked(spoken):
    assert respond(spoken, TOKENIZER, []) == []


def test_what_cannot_be_asked_is_refused(spoken):
    with pytest.raises(ValueError, match="put the one prompt in brackets"):
        respond(spoken, TOKENIZER, "hi")
    with pytest.raises(ValueError, match="end with the user's turn"):
        respond(spoken, TOKENIZER, [conversation("hi", "yo")])
    with pytest.raises(ValueError, match="at most 96, the model's context"):
        respond(spoken, TOKENIZER, ["x" * 60])
    with pytest.raises(ValueError, match="B must be"):
        respond(spoken, TOKENIZER, ["hi"], B=0)
