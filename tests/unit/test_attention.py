"""Attention, RoPE and RMSNorm against their definitions, and the model around them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minillm.model import (
    GPT,
    GPTConfig,
    KVCache,
    RMSNorm,
    SwiGLU,
    apply_rope,
    export_huggingface,
    generate,
    rope_rotations,
)
from minillm.model.attention import Attention, attention_mask, positions

CONFIG = GPTConfig(
    vocab_size=31, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, context=24
)


def spread_model(config: GPTConfig = CONFIG) -> GPT:
    """A float64 model with weights so large that every path matters."""
    model = GPT(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def real_rope(x: torch.Tensor, theta: float = 1e4) -> torch.Tensor:
    """The rotate-half formula as written in papers: x cos + rotate_half(x) sin."""
    T, D = x.shape[1], x.shape[-1]
    frequency = 1 / theta ** (torch.arange(0, D, 2).double() / D)
    angle = torch.arange(T).double()[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)[:, None]  # T 1 D
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


# --- causality ----------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 1, 7, 15])
@pytest.mark.parametrize("masked", [False, True])
def test_a_changed_token_leaves_the_past_bit_equal_and_moves_the_present(t, masked):
    model = spread_model()
    tokens = torch.randint(31, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.bool) if masked else None
    before = model(tokens, mask)
    changed = tokens.clone()
    changed[:, t] = (changed[:, t] + 1) % 31
    after = model(changed, mask)
    assert torch.equal(before[:, :t], after[:, :t])
    for later in range(t, 16):  # also all that follow: nobody forgets
        assert (before[:, later] - after[:, later]).abs().max() > 1e-6


def test_no_gradient_flows_from_an_output_to_later_inputs():
    attention = Attention(CONFIG, layer=0).double()
    x = torch.randn(1, 8, 32, dtype=torch.float64, requires_grad=True)
    attention(x, rope_rotations(8, 8))[0, 3].sum().backward()
    assert x.grad[0, 4:].eq(0).all()
    assert x.grad[0, :4].ne(0).any(dim=-1).all()


# --- attention itself ---------------------------------------------------------------


def slow_attention(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """One head, one query and one key at a time."""
    B, T = x.shape[:2]
    D = attention.head_dim
    q, k, v = (
        layer(x).view(B, T, -1, D)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = real_rope(q), real_rope(k)
    H, group = q.shape[2], q.shape[2] // k.shape[2]
    y = torch.zeros(B, T, H, D, dtype=x.dtype)
    for h in range(H):
        kv = h // group  # query head h shares key head h // group
        for t in range(T):
            scores = torch.stack(
                [(q[:, t, h] * k[:, s, kv]).sum(-1) for s in range(t + 1)], dim=-1
            )
            weights = (scores / math.sqrt(D)).softmax(-1)
            y[:, t, h] = sum(weights[:, s, None] * v[:, s, kv] for s in range(t + 1))
    return attention.o_proj(y.flatten(2))


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_attention_equals_its_definition_written_as_loops(n_kv_head):
    config = GPTConfig(31, n_head=4, n_kv_head=n_kv_head, n_embd=32)
    attention = Attention(config, layer=0).double()
    x = 3 * torch.randn(2, 6, 32, dtype=torch.float64)
    # 1e-5 and not tighter: the model keeps its rotations as complex64.
    torch.testing.assert_close(
        attention(x, rope_rotations(8, 6)), slow_attention(attention, x),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_scores_are_divided_by_the_root_of_the_heads_width_and_of_nothing_else():
    # M05: wrong scales are 1, 1/D and 1/sqrt(C). Queries and keys are the inputs
    # themselves, so the weight of the first of two keys is sigmoid(score difference).
    config = GPTConfig(31, n_head=2, n_embd=16)
    attention = Attention(config, layer=0).double()
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        layer.weight.data = torch.eye(16, dtype=torch.float64)
    attention.o_proj.weight.data = torch.eye(16, dtype=torch.float64)
    x = torch.randn(1, 2, 16, dtype=torch.float64)
    no_turn = torch.ones(2, 4, dtype=torch.complex64)
    y = attention(x, no_turn).view(2, 2, 8)[1]
    for head in range(2):
        first, second = x.view(2, 2, 8)[:, head]
        p = torch.sigmoid((second @ first - second @ second) / math.sqrt(8))
        # y's heads are in their own order: values are never permuted by RoPE.
        torch.testing.assert_close(y[head], p * first + (1 - p) * second)


def test_grouped_heads_equal_key_and_value_heads_that_are_repeated():
    grouped = Attention(CONFIG, layer=0).double()
    whole = Attention(GPTConfig(31, n_head=4, n_embd=32), layer=0).double()
    whole.q_proj, whole.o_proj = grouped.q_proj, grouped.o_proj
    for name in ("k_proj", "v_proj"):
        heads = getattr(grouped, name).weight.data.view(2, 8, 32)
        repeated = heads.repeat_interleave(2, dim=0)  # M39: repeat() would be wrong
        getattr(whole, name).weight.data = repeated.reshape(32, 32)
    x = 3 * torch.randn(2, 7, 32, dtype=torch.float64)
    rotations = rope_rotations(8, 7)
    torch.testing.assert_close(
        grouped(x, rotations), whole(x, rotations), rtol=1e-12, atol=1e-12
    )


# --- RoPE ---------------------------------------------------------------------------


def test_scores_depend_on_the_distance_of_two_tokens_and_not_on_their_place():
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)
    rotations = rope_rotations(64, 200)

    def score(m: int, n: int) -> float:
        rotated = apply_rope(q, rotations[m : m + 1]), apply_rope(k, rotations[n:][:1])
        return (rotated[0] * rotated[1]).sum().item()

    for m, n, shift in [(3, 1, 100), (5, 5, 77), (150, 0, 49), (0, 4, 3)]:
        # complex64 rotations carry about 1e-7 relative error; 64 terms of order 1
        assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-5)
    assert abs(score(3, 1) - score(4, 1)) > 1e-2  # and the distance does matter


def test_rope_equals_the_rotate_half_formula_up_to_the_order_of_dimensions():
    x = torch.randn(2, 9, 3, 16, dtype=torch.float64)
    ours, theirs = apply_rope(x, rope_rotations(16, 9)), real_rope(x)
    order = torch.stack([torch.arange(8), torch.arange(8) + 8], dim=1).flatten()
    torch.testing.assert_close(ours, theirs[..., order], rtol=1e-5, atol=1e-6)


def test_interleaved_angles_on_split_halves_would_not_even_keep_lengths():
    # M07a: the classic mixture of two conventions; here so that it is seen to differ.
    x = torch.randn(1, 9, 1, 16, dtype=torch.float64)
    angle = rope_rotations(16, 9).angle().double().repeat_interleave(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    wrong = x * angle.cos() + half * angle.sin()
    assert (wrong.norm(dim=-1) - x.norm(dim=-1)).abs().max() > 0.1
    right = apply_rope(x, rope_rotations(16, 9))
    torch.testing.assert_close(right.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


def test_position_zero_is_not_turned_and_the_first_pair_turns_by_a_radian():
    rotations = rope_rotations(8, 3, theta=100.0)
    assert rotations[0].eq(1).all()
    expected = torch.tensor([1.0, 100**-0.25, 100**-0.5, 100**-0.75])
    torch.testing.assert_close(rotations[1, 0].angle(), expected)


def test_angles_are_still_right_a_hundred_thousand_tokens_away():
    turn = rope_rotations(128, 100_001)[-1, 0, 0]  # exactly 100,000 radians
    assert turn.real == pytest.approx(math.cos(100_000), abs=1e-6)
    assert turn.imag == pytest.approx(math.sin(100_000), abs=1e-6)


@pytest.mark.parametrize("H", [2, 3])
def test_rotations_for_more_heads_only_repeat_those_of_one(H):
    x = torch.randn(2, 9, 2, 16, dtype=torch.float64)
    one, several = rope_rotations(16, 9), rope_rotations(16, 9, H=H)
    assert torch.equal(apply_rope(x, one), apply_rope(x, several))


def test_values_are_not_turned():
    attention = Attention(CONFIG, layer=0).double()
    x = torch.randn(1, 1, 32, dtype=torch.float64)  # one token: y is its own value
    still, turned = rope_rotations(8, 1), rope_rotations(8, 9)[8:]
    torch.testing.assert_close(attention(x, still), attention(x, turned))


def test_odd_widths_have_no_pairs():
    with pytest.raises(ValueError, match="D must be even, got 5"):
        apply_rope(torch.zeros(1, 1, 1, 5), rope_rotations(4, 1))


@pytest.mark.parametrize("convert", ["to", "method", "argument", "nested"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_converting_a_model_leaves_its_rotations_alone(convert, dtype, recwarn):
    model = spread_model().float()
    rotations = model.rotations.clone()
    assert not model.state_dict().keys() & {"rotations"}
    if convert == "to":
        model.to(dtype)
    elif convert == "method":
        names = {torch.float64: "double", torch.bfloat16: "bfloat16"}
        getattr(model, names.get(dtype, "half"))()
    elif convert == "argument":
        model.to("cpu", dtype)
    else:
        nn.ModuleDict({"policy": model}).to(dtype)
    assert torch.equal(model.rotations, rotations)
    assert model.lm_head.weight.dtype == dtype
    assert not recwarn.list and not model.state_dict().keys() & {"rotations"}


def test_a_model_built_without_memory_gets_its_rotations_with_its_memory():
    with torch.device("meta"):
        model = GPT(CONFIG)
    model.to_empty(device="cpu")
    assert torch.equal(model.rotations, GPT(CONFIG).rotations)


def test_half_precisions_stay_near_the_float32_model():
    model = spread_model().float()
    tokens = torch.randint(31, (2, 8))
    expected = model(tokens)
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some dozen of them on the way
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.1)):
        logits = spread_copy(model).to(dtype)(tokens)
        assert logits.dtype == dtype
        error = (logits.float() - expected).norm() / expected.norm()
        assert error < tolerance


def spread_copy(model: GPT) -> GPT:
    copy = GPT(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


# --- masks --------------------------------------------------------------------------


def test_the_mask_of_a_chunk_is_the_bottom_right_of_the_whole_triangle():
    whole = attention_mask(None, 7, 7, "cpu")
    assert torch.equal(attention_mask(None, 3, 7, "cpu"), whole[:, :, -3:])
    assert whole[0, 0].equal(torch.ones(7, 7).tril().bool())


def test_every_query_sees_itself_and_no_query_sees_padding_or_the_future():
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    seen = attention_mask(mask.bool(), 6, 6, "cpu")[:, 0]
    for b, t, s in torch.cartesian_prod(*map(torch.arange, (3, 6, 6))).tolist():
        assert seen[b, t, s] == (t == s or (s < t and bool(mask[b, s])))


def test_positions_count_real_tokens_wherever_the_padding_stands():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    expected = [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert positions(mask.bool()).tolist() == expected


def test_a_row_of_padding_alone_gives_finite_logits_and_gradients():
    model = spread_model()
    mask = torch.tensor([[False] * 5, [True] * 5])
    model(torch.randint(31, (2, 5)), mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- RMSNorm ------------------------------------------------------------------------


def test_rmsnorm_equals_torchs_in_value_and_gradients():
    ours = RMSNorm(12, eps=1e-5).double()
    ours.weight.data.uniform_(-2, 2)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 5, 12, dtype=torch.float64)
    theirs = F.rms_norm(x, (12,), ours.weight, eps=1e-5)
    inputs = (x, ours.weight)
    expected = torch.autograd.grad(theirs, inputs, g)
    y = ours(x)
    torch.testing.assert_close(y, theirs, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(
        torch.autograd.grad(y, inputs, g), expected, strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (2, 0, 6)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rmsnorms_gradient_by_hand_equals_central_differences(shape, eps):
    norm = RMSNorm(6, eps).double()
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        (x, norm.weight),
    )


def test_rmsnorm_takes_inputs_and_gradients_of_any_stride():
    norm = RMSNorm(4).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    g = torch.randn(3, 2, 4, dtype=torch.float64)
    plain, strided = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm(plain).backward(g)
    expected, norm.weight.grad = norm.weight.grad, None
    norm(strided.transpose(0, 1)).backward(g.transpose(0, 1))
    torch.testing.assert_close(strided.grad, plain.grad)
    torch.testing.assert_close(norm.weight.grad, expected)


def test_rmsnorm_is_none_of_the_usual_mistakes():
    norm = RMSNorm(8, eps=1e-5).double()
    constant = torch.full((1, 8), 3.0, dtype=torch.float64)
    # M08b and LayerNorm subtract the mean and give 0 here
    torch.testing.assert_close(norm(constant), constant / 3, rtol=1e-6, atol=0)
    assert F.layer_norm(constant, (8,)).abs().max() < 1e-6
    tiny = torch.full((1, 8), 1e-4, dtype=torch.float64)
    # M08c: eps outside the root would give 0.909
    assert norm(tiny)[0, 0].item() == pytest.approx(1e-4 / math.sqrt(1e-8 + 1e-5))
    assert norm(tiny)[0, 0].item() == pytest.approx(0.0316, abs=1e-4)
    # M08d: statistics of one row do not touch another
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    together, alone = norm(x), norm(x[1:, 2:])
    torch.testing.assert_close(together[1:, 2:], alone)


def test_rmsnorm_computes_bfloat16_inputs_in_float32():
    norm = RMSNorm(64)
    x = torch.randn(5, 64).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    expected = F.rms_norm(x.float(), (64,), eps=1e-5).bfloat16()
    assert torch.equal(y, expected)
    whole = norm.bfloat16()
    x.requires_grad_()
    whole(x).sum().backward()
    assert x.grad.dtype == whole.weight.grad.dtype == torch.bfloat16
    assert whole.weight.grad.isfinite().all()


def test_swiglu_gates_with_silu_and_has_no_bias():
    mlp = SwiGLU(GPTConfig(31, n_head=2, n_embd=8)).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    expected = (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)
    assert mlp(torch.zeros_like(x)).eq(0).all()


# --- the whole model ----------------------------------------------------------------


def test_an_untrained_model_is_as_uncertain_as_a_fair_die():
    model = GPT(GPTConfig(500, n_layer=2, n_head=4, n_embd=64, context=64))
    tokens = torch.randint(500, (8, 64))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    # Logits have a deviation of 0.02 sqrt(64) = 0.16, which costs 0.16^2 / 2 = 0.013.
    assert loss.item() == pytest.approx(math.log(500), abs=0.04)


def test_branches_start_smaller_in_deeper_models():
    model = GPT(GPTConfig(31, n_layer=8, n_head=4, n_embd=128))
    block = model.layers[5]
    for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = GPT(CONFIG), GPT(GPTConfig(31, n_embd=32, tied=False))
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert not untied.lm_head.weight.equal(untied.embed_tokens.weight)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"tokens must be \(B, T\)"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "tokens"),
        (torch.zeros(1, 3), "tokens"),
        (torch.zeros(1, 3, dtype=torch.bool), "tokens"),
        (torch.zeros(1, 3, dtype=torch.uint8), "tokens"),
        (torch.zeros(1, 0, dtype=torch.long), "tokens"),
        (torch.zeros(0, 3, dtype=torch.long), "tokens"),
        (torch.tensor(3), "tokens"),
        (torch.zeros(1, 25, dtype=torch.long), "sequence length must be in 1..24"),
    ],
)
def test_tokens_of_another_kind_are_refused_at_the_door(tokens, message):
    with pytest.raises(ValueError, match=message):
        GPT(CONFIG)(tokens)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 4, dtype=torch.bool),
        torch.ones(2, 3, dtype=torch.bool),
        torch.ones(2, 4),
        torch.ones(2, 4, dtype=torch.long),
        torch.ones(4, dtype=torch.bool),
    ],
)
def test_masks_of_another_kind_are_refused_at_the_door(mask):
    with pytest.raises(ValueError, match="mask must be a bool tensor of shape"):
        GPT(CONFIG)(torch.zeros(2, 4, dtype=torch.long), mask)


def test_a_cache_takes_neither_more_tokens_nor_other_rows_than_it_was_made_for():
    model = GPT(CONFIG)
    cache = KVCache(CONFIG, 2, 4, model.norm.weight)
    model(torch.zeros(2, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="tokens must be at most 4, the cache's T"):
        model(torch.zeros(2, 2, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="tokens must be 2 rows like the cache"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert cache.length == 3


ENCODER = replace(CONFIG, causal=False)


def test_an_encoder_sees_what_comes_later_and_a_decoder_does_not():
    tokens = torch.randint(1, CONFIG.vocab_size, (2, 6))
    changed = tokens.clone()
    changed[:, -1] = (tokens[:, -1] + 1) % CONFIG.vocab_size
    for config, sees in [(CONFIG, False), (ENCODER, True)]:
        torch.manual_seed(0)
        model = GPT(config)
        early, other = model(tokens)[:, :-1], model(changed)[:, :-1]
        assert (early != other).any(dim=-1).all() == sees


def test_an_encoder_attends_as_the_formula_says():
    torch.manual_seed(0)
    layer, x = (
        Attention(ENCODER, 0).double(),
        torch.randn(2, 5, ENCODER.n_embd).double(),
    )
    T, H, D = 5, ENCODER.n_head, ENCODER.head_dim
    still = torch.ones(T, H, D // 2, dtype=torch.complex128)  # RoPE turns by nothing
    pairs = [i + D // 2 * j for i in range(D // 2) for j in range(2)]
    q = layer.q_proj(x).view(2, T, H, D)[..., pairs]
    k = layer.k_proj(x).view(2, T, -1, D)[..., pairs]
    v = layer.v_proj(x).view(2, T, -1, D)
    k, v = (each.repeat_interleave(H // each.shape[2], dim=2) for each in (k, v))
    weights = (torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D)).softmax(-1)
    y = layer.o_proj(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
    torch.testing.assert_close(layer(x, still), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_that_an_encoder_says_of_real_tokens(side):
    torch.manual_seed(0)
    model = GPT(ENCODER)
    row, pad = torch.randint(1, CONFIG.vocab_size, (1, 4)), torch.zeros(1, 2).long()
    parts = [pad, row] if side == "left" else [row, pad]
    tokens = torch.cat(parts, dim=1)
    real = slice(2, 6) if side == "left" else slice(0, 4)
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[:, real] = True
    torch.testing.assert_close(model(tokens, mask)[:, real], model(row))


def test_what_only_a_decoder_can_do_is_refused_to_an_encoder(tmp_path):
    model = GPT(ENCODER)
    refused = "causal must be True, got False"
    with pytest.raises(ValueError, match=refused):
        generate(model, [[1, 2]], max_new_tokens=1)
    with pytest.raises(ValueError, match=refused):
        KVCache(ENCODER, 1, 4, model.norm.weight)
    with pytest.raises(ValueError, match=refused):
        export_huggingface(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
