"""Systems without processes: what is held, what is computed again, who waits."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.compression import held_bytes
from minillm.data.batches import Batch
from minillm.finetuning import apply_lora, apply_qlora
from minillm.model import GPT, GPTConfig, KVCache
from minillm.model.config import kv_cache_bytes
from minillm.systems import (
    FLOAT32,
    MIXED,
    Bytes,
    Stage,
    Wire,
    ZeroOptimizer,
    activation_bytes,
    bubble,
    checkpointing,
    clip_parts,
    cut_model,
    expert_parallel,
    gpipe,
    in_flight,
    launch,
    model_states,
    one_f_one_b,
    peak_bytes,
    run_schedule,
    saved_bytes,
    shard_weights,
    timeline,
    vocabulary_loss,
)
from minillm.systems.memory import nf4_bytes
from minillm.systems.schedules import Action
from minillm.training import World, build_optimizers, next_token_loss

CONFIG = GPTConfig(50, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, tied=False)
CONFIGS = [CONFIG, GPTConfig(37, n_layer=2, n_head=2, n_embd=16, context=20)]


def tokens(config: GPTConfig, B: int = 2, T: int = 9) -> torch.Tensor:
    return torch.randint(config.vocab_size, (B, T))


def states_of(model, optimizers) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer that really exist."""
    state = [s for o in optimizers for s in o.state.values()]
    moments = [t for s in state for name, t in s.items() if name != "step"]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return held_bytes(model), *(sum(t.nbytes for t in x) for x in (gradients, moments))


# --- model states -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_calculator_counts_the_tensors_that_exist(config, method):
    model = GPT(config)
    if method == "lora":
        apply_lora(model, rank=3, targets=("q_proj", "down_proj"))
    if method == "qlora":
        apply_qlora(model, rank=3, targets=("q_proj", "down_proj"))
    optimizers = build_optimizers(model, "adamw")
    batch = tokens(config)
    next_token_loss(model(batch), batch).backward()
    for optimizer in optimizers:
        optimizer.step()
    weights, gradients, moments = states_of(model, optimizers)
    expected = model_states(config, method, rank=3, targets=("q_proj", "down_proj"))
    assert (weights, gradients, moments) == tuple(vars(expected).values())


@pytest.mark.parametrize("size", [1, 63, 65, 64 * 256 + 1])
def test_nf4_is_counted_to_the_byte(size):
    from minillm.compression import quantize_nf4

    q = quantize_nf4(torch.randn(size), double_quant=True)
    assert nf4_bytes(size) == q.nbytes


def test_full_precision_and_mixed_hold_the_same_states():
    full, mixed = (model_states(CONFIG, per=per) for per in (FLOAT32, MIXED))
    assert full.total == mixed.total
    assert (full.optimizer, mixed.optimizer) == (2 * full.weights, 6 * mixed.weights)


def test_zero_shares_what_its_stage_says_and_nothing_else():
    whole = model_states(CONFIG, per=MIXED)
    for stage, shared in enumerate(["", "optimizer", "gradients", "weights"]):
        assert vars(model_states(CONFIG, per=MIXED, stage=stage)) == vars(whole)
        if shared:
            before = model_states(CONFIG, per=MIXED, stage=stage - 1, processes=8)
            after = model_states(CONFIG, per=MIXED, stage=stage, processes=8)
            fell = {k for k, v in vars(after).items() if v < vars(before)[k]}
            assert fell == {shared}
            assert vars(after)[shared] == vars(whole)[shared] / 8
    assert model_states(CONFIG, stage=3, processes=8).total == 16 / 8 * whole.total / 16


def test_the_rank_of_a_lora_hardly_matters_to_memory():
    llama = GPTConfig(
        32_000, n_layer=32, n_head=32, n_embd=4096, n_hidden=11_008, tied=False
    )
    half = Bytes(frozen=2)
    small, large = (model_states(llama, "lora", half, rank=r).total for r in (8, 64))
    whole = model_states(llama, per=MIXED)
    four_bits = model_states(llama, "qlora", half)
    shares = [x / whole.total for x in (small, large, four_bits.total)]
    assert shares == pytest.approx([0.128, 0.149, 0.039], abs=5e-4)


def test_the_cache_takes_what_was_said():
    cache = KVCache(CONFIG, B=3, T=11, like=torch.zeros(1, dtype=torch.bfloat16))
    assert cache.kv.nbytes == kv_cache_bytes(CONFIG, 3, 11, bytes_per_value=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dora"}, "method must be one of"),
        ({"stage": 4}, "stage must be one of"),
        ({"processes": 0}, "processes must be"),
        ({"method": "lora", "rank": 0}, "rank must be"),
        ({"method": "lora", "targets": "wq"}, "targets must be among"),
    ],
)
def test_the_calculator_refuses_what_does_not_exist(change, message):
    with pytest.raises(ValueError, match=message):
        model_states(CONFIG, **change)


# --- activations and checkpoints --------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_kept_is_what_was_calculated(config, every):
    model, batch = GPT(config), tokens(config)

    def run():
        return next_token_loss(model(batch), batch)

    if every is None:
        kept = saved_bytes(model, run)
    else:
        with checkpointing(model, every):
            kept = saved_bytes(model, run)
    assert kept == activation_bytes(config, 2, 9, every)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_checkpoints_change_no_bit_of_the_gradient(every):
    model, batch = GPT(CONFIG), tokens(CONFIG)
    mask = torch.arange(9) >= torch.tensor([[0], [4]])  # padding on the left, too
    next_token_loss(model(batch, mask), batch, mask).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    with checkpointing(model, every):
        loss = next_token_loss(model(batch, mask), batch, mask)
    loss.backward()  # outside: what was remembered counts, not where one stands
    assert expected.keys() == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        assert p.grad.equal(expected[name]), name


def test_checkpoints_cost_one_more_forward_pass_and_lower_the_peak():
    config = GPTConfig(50, n_layer=6, n_head=2, n_embd=32)
    model, batch = GPT(config), tokens(config, 4, 64)

    def step():
        model.zero_grad()
        next_token_loss(model(batch), batch).backward()

    def flops():
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    plain, peak = flops(), peak_bytes(step, model)
    with checkpointing(model):
        again, low = flops(), peak_bytes(step, model)
    # A little below 4/3: the head is no block, and the last product of a block is
    # not needed again.
    assert 1.2 < again / plain < 4 / 3
    weights = held_bytes(model)
    assert peak > weights + activation_bytes(config, 4, 64)
    assert weights + activation_bytes(config, 4, 64, 1) < low < peak / 2


def test_a_model_is_the_same_again_after_an_error_within_checkpoints():
    model = GPT(CONFIG)
    layers = model.layers
    with pytest.raises(ValueError, match="tokens"), checkpointing(model):
        model(torch.zeros(1, 0).long())
    assert model.layers is layers
    with pytest.raises(ValueError, match="every must be"), checkpointing(model, 0):
        pass


# --- schedules ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (2, 1), (4, 2), (4, 8), (3, 16)])
def test_the_bubble_is_what_the_formula_says(make, p, m):
    schedule = make(p, m)
    every_one = sorted(Action(kind, i) for kind in "BF" for i in range(m))
    assert all(sorted(actions) == every_one for actions in schedule)
    for backward in (1, 2, 3.5):
        events = timeline(schedule, forward=1, backward=backward)
        assert bubble(events) == pytest.approx((p - 1) / (m + p - 1), rel=1e-12)
        assert max(e.end for e in events) == pytest.approx((m + p - 1) * (1 + backward))


def test_only_1f1b_holds_no_more_for_more_micro_batches():
    assert [in_flight(actions) for actions in gpipe(4, 9)] == [9] * 4
    assert [in_flight(actions) for actions in one_f_one_b(4, 9)] == [4, 3, 2, 1]
    assert [in_flight(actions) for actions in one_f_one_b(4, 2)] == [2, 2, 2, 1]


def test_a_schedule_that_waits_for_itself_is_refused():
    backward_first = [[Action("B", 0), Action("F", 0)]]
    with pytest.raises(ValueError, match="a deadlock"):
        timeline(backward_first)


# --- alone, and at the door ----------------------------------------------------------


def test_alone_every_kind_of_parallelism_is_plain_training():
    model, wire = GPT(CONFIG), Wire(World())
    batch = Batch(tokens(CONFIG), torch.ones(2, 9).bool())
    loss = next_token_loss(model(batch.tokens), *batch)
    stage = Stage(model, wire)
    assert run_schedule(stage, one_f_one_b(1, 1)[0], batch, 1) == loss.item()
    cut = vocabulary_loss(cut_model(model, wire)(batch.tokens), *batch, wire)
    torch.testing.assert_close(cut, loss)
    assert wire.sent == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_accumulates_and_leaves_frozen_weights_alone(stage):
    model, batch = GPT(CONFIG), tokens(CONFIG)
    model.embed_tokens.requires_grad_(False)
    plain = copy.deepcopy(model)
    optimizer = ZeroOptimizer(model, Wire(World()), stage, torch.optim.AdamW)
    theirs = torch.optim.AdamW(p for p in plain.parameters() if p.requires_grad)
    for _ in range(2):
        next_token_loss(model(batch), batch).backward()
        next_token_loss(plain(batch), batch).backward()
    optimizer.step()
    theirs.step()
    assert all(p.grad is None for p in model.parameters())
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_sharded_weights_may_be_frozen():
    model, batch = GPT(CONFIG), tokens(CONFIG)
    apply_lora(model, rank=2)
    plain = copy.deepcopy(model)
    shard_weights(model, Wire(World()))
    for each in (model, plain):
        next_token_loss(each(batch), batch).backward()
    ours = [p.grad for p in model.parameters() if p.requires_grad]
    theirs = [p.grad.flatten() for p in plain.parameters() if p.requires_grad]
    torch.testing.assert_close(ours, theirs)


def test_a_vocabulary_in_shares_survives_extreme_logits():
    logits = torch.tensor([[[1e4, -1e4], [0.0, 1e4], [0.0, 0.0]]], requires_grad=True)
    ids = torch.tensor([[0, 0, 1]])
    loss = vocabulary_loss(logits, ids, None, Wire(World()))
    loss.backward()
    assert loss == next_token_loss(logits, ids)
    assert logits.grad.isfinite().all()


def test_sizes_that_cannot_be_shared_are_refused_before_anybody_waits():
    four = Wire(World(0, 4))  # without a process group: an exchange would fail
    batch = Batch(tokens(CONFIG), torch.ones(2, 9).bool())
    with pytest.raises(ValueError, match="n_layer must be a multiple of 4"):
        Stage(GPT(CONFIG), four)
    with pytest.raises(ValueError, match="tied must be False"):
        Stage(GPT(GPTConfig(50, n_layer=4)), four)
    with pytest.raises(ValueError, match="processes must be a divisor of n_kv_head"):
        cut_model(GPT(CONFIG), four)
    with pytest.raises(ValueError, match="length must be a multiple of 4, got 7"):
        four.reduce_scatter(torch.ones(7))
    with pytest.raises(ValueError, match="B must be a multiple of 3 micro-batches"):
        run_schedule(Stage(GPT(CONFIG), Wire(World())), [], batch, 3)
    choice = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"choice must be in 0\.\.3"):
        expert_parallel(torch.ones(2, 1), choice, [torch.neg], four)


def test_settings_without_a_meaning_are_refused():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="stage must be one of"):
        ZeroOptimizer(layer, Wire(World()), 3, torch.optim.AdamW)
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_parts(layer.parameters(), 0, World())
    nothing, ids = torch.zeros(1, 3).bool(), torch.zeros(1, 3).long()
    with pytest.raises(ValueError, match="targets must be at least 1"):
        vocabulary_loss(torch.zeros(1, 3, 2), ids, nothing, Wire(World()))
    with pytest.raises(ValueError, match="size must be"):
        launch(print, 0)
    with pytest.raises(ValueError, match="function must be in a module of its own"):
        launch(len, 2)  # of builtins, which has no file, as a notebook has none
    with pytest.raises(ValueError, match="timeout must be positive"):
        launch(print, 1, timeout=0)
