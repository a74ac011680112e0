"""LoRA, DoRA and IA3: what is proved of adapters that can be merged."""

import copy

import pytest
import torch
from torch import nn

from minillm.finetuning.adapted import (
    adapt,
    count_trainable,
    merge,
    unload,
    unmerge,
)
from minillm.finetuning.adapter_files import load_lora, save_lora
from minillm.finetuning.dora import DoRALinear
from minillm.finetuning.ia3 import IA3Linear, apply_ia3
from minillm.finetuning.lora import LoRALinear, apply_lora, lora_layers
from minillm.finetuning.lora_state import compose_lora, load_lora_state, lora_state
from minillm.finetuning.targets import select_linears
from minillm.model import GPT, GPTConfig
from minillm.training import next_token_loss

SHAPE = GPTConfig(40, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, context=32)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])
KINDS = {
    "lora": lambda model: apply_lora(model, 3, 6, targets="all"),
    "rslora": lambda model: apply_lora(model, 3, 6, rank_stabilized=True),
    "dora": lambda model: apply_lora(model, 3, 6, targets="all", layer=DoRALinear),
    "ia3": apply_ia3,
}


def plain(seed=0, config=SHAPE):
    torch.manual_seed(seed)
    return GPT(config).double()


def shaken(model, seed=1):
    """Adapters that have learned something."""
    dice = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
            parameter.data += 0.3 * noise
    return model


@pytest.fixture(params=KINDS)
def adapted(request):
    return shaken(KINDS[request.param](plain()))


@pytest.mark.parametrize("kind", ["lora", "rslora", "ia3"])
def test_a_new_adapter_leaves_the_logits_as_they_are_bit_for_bit(kind):
    model = plain()
    before = model(TOKENS)
    assert torch.equal(KINDS[kind](model)(TOKENS), before)


def test_a_new_dora_leaves_the_logits_as_they_are_up_to_rounding():
    model = plain()
    before = model(TOKENS)
    torch.testing.assert_close(KINDS["dora"](model)(TOKENS), before, rtol=1e-12, atol=0)


def test_what_was_learned_changes_the_logits(adapted):
    assert not torch.allclose(adapted(TOKENS), plain()(TOKENS), rtol=1e-2)


def test_merged_equals_run_and_unmerged_is_the_base_bit_for_bit(adapted):
    before = adapted(TOKENS)
    weights = {n: p.clone() for n, p in adapted.named_parameters()}
    torch.testing.assert_close(merge(adapted)(TOKENS), before, rtol=1e-10, atol=1e-12)
    assert any(not torch.equal(p, weights[n]) for n, p in adapted.named_parameters())
    unmerge(adapted)
    assert all(torch.equal(p, weights[n]) for n, p in adapted.named_parameters())
    assert torch.equal(adapted(TOKENS), before)


def test_unloaded_it_is_a_plain_model_that_does_the_same(adapted):
    before, names = adapted(TOKENS), set(plain().state_dict())
    model = unload(adapted)
    assert set(model.state_dict()) == names
    assert isinstance(model.layers[0].self_attn.q_proj, nn.Linear)
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-10, atol=1e-12)


def test_merging_twice_or_unmerging_what_is_not_merged_is_refused(adapted):
    with pytest.raises(ValueError, match="unmerge first"):
        merge(merge(adapted))
    unmerge(adapted)
    with pytest.raises(ValueError, match="merge first"):
        unmerge(adapted)


def test_only_what_was_added_gets_a_gradient_and_moves(adapted):
    base = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    next_token_loss(adapted(TOKENS), TOKENS).backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, f"{name} learns nothing"
    learning = [p for p in adapted.parameters() if p.requires_grad]
    torch.optim.SGD(learning, lr=1.0).step()
    for name, parameter in adapted.named_parameters():
        assert name not in base or torch.equal(parameter, base[name]), name


def test_at_the_start_b_has_a_gradient_and_a_has_none():
    model = KINDS["lora"](plain())
    next_token_loss(model(TOKENS), TOKENS).backward()
    layer = model.layers[0].self_attn.q_proj
    assert layer.lora_A.grad.abs().max() == 0
    assert layer.lora_B.grad.abs().max() > 0


def test_gradients_are_those_of_the_plain_matrix_by_the_chain_rule():
    # With W' = W + s B A and G = dL/dW': dL/dB = s G A^T and dL/dA = s B^T G.
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 5).double(), rank=2, alpha=3)
    layer.lora_B.data.normal_()
    x, g = torch.randn(7, 6).double(), torch.randn(7, 5).double()
    layer(x).backward(g)
    G, s = g.T @ x, 3 / 2
    torch.testing.assert_close(layer.lora_B.grad, s * G @ layer.lora_A.T)
    torch.testing.assert_close(layer.lora_A.grad, s * layer.lora_B.T @ G)


def test_doras_norm_is_a_constant_to_the_gradient():
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(6, 5).double(), rank=2, alpha=3)
    layer.lora_B.data.normal_()
    x, g = torch.randn(7, 6).double(), torch.randn(7, 5).double()
    layer(x).backward(g)
    V = layer.base.weight + layer.delta().detach()
    norm = V.norm(dim=1)
    stretch, G = layer.magnitude.detach() / norm, g.T @ x
    expected = 1.5 * (stretch[:, None] * G) @ layer.lora_A.detach().T
    torch.testing.assert_close(layer.lora_B.grad, expected)
    torch.testing.assert_close(layer.magnitude.grad, ((x @ V.T) * g).sum(0) / norm)


def test_doras_rows_are_as_long_as_the_magnitude_says():
    layer = DoRALinear(nn.Linear(6, 5).double(), rank=2, alpha=3)
    layer.lora_B.data.normal_()
    layer.magnitude.data = torch.arange(1.0, 6.0).double()
    torch.testing.assert_close(layer.merged()[0].norm(dim=1), layer.magnitude.data)


def test_a_row_of_zeros_stays_zero_and_finite_in_dora():
    base = nn.Linear(6, 5).double()
    base.weight.data[2] = 0
    layer = DoRALinear(base, rank=2, alpha=3)
    x = torch.randn(3, 6).double()
    torch.testing.assert_close(layer(x)[:, 2], base.bias[2].expand(3))
    layer(x).sum().backward()
    assert layer.lora_B.grad.isfinite().all()


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_a_bias_is_kept_and_not_scaled(kind):
    base = nn.Linear(6, 5).double()
    layer = kind(base, 2, 3)
    layer.lora_B.data.normal_()
    zero = torch.zeros(1, 6).double()
    torch.testing.assert_close(layer(zero)[0], base.bias)
    run = layer(x := torch.randn(4, 6).double())
    layer.merge()
    torch.testing.assert_close(layer(x), run)


def test_ia3_scales_the_bias_of_outputs_and_leaves_it_for_inputs():
    x = torch.randn(4, 6).double()
    for on_input in (False, True):
        layer = IA3Linear(nn.Linear(6, 5).double(), on_input)
        layer.scale.data.normal_()
        run = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), run)
        layer.unmerge()
        torch.testing.assert_close(layer(x), run, rtol=0, atol=0)


def test_the_scaling_is_alpha_over_r_or_over_its_root():
    base = nn.Linear(16, 16)
    assert LoRALinear(base, 4, 8).scaling == 2
    assert LoRALinear(base, 4, 8, rank_stabilized=True).scaling == 4


def test_stabilised_updates_keep_their_size_as_the_rank_grows():
    def size(rank, stabilized):
        torch.manual_seed(0)
        layer = LoRALinear(nn.Linear(256, 256), rank, 1.0, 0.0, stabilized)
        layer.lora_B.data.normal_()
        return layer.delta().norm().item()

    assert size(64, True) / size(4, True) == pytest.approx(1, rel=0.1)
    assert size(64, False) / size(4, False) == pytest.approx(1 / 4, rel=0.1)


def test_dropout_reaches_the_change_only_and_only_in_training():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 8), 4, 8, dropout=0.5)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), layer.base(x))  # B is still 0
    layer.lora_B.data.normal_()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_number_of_trained_parameters_is_r_times_in_plus_out():
    model = apply_lora(plain(), 2, 4, targets="all")
    kv, F = 8, SHAPE.n_hidden
    per_layer = 2 * (2 * (16 + 16) + 2 * (16 + kv) + 3 * (16 + F))
    assert count_trainable(model)[0] == SHAPE.n_layer * per_layer
    dora = apply_lora(plain(), 2, 4, targets="all", layer=DoRALinear)
    rows = SHAPE.n_layer * (16 + kv + kv + 16 + F + F + 16)
    assert count_trainable(dora)[0] == SHAPE.n_layer * per_layer + rows


def test_a_change_of_full_rank_can_be_any_change():
    layer = LoRALinear(nn.Linear(4, 4, bias=False).double(), 4, 4)
    wanted = torch.randn(4, 4).double()
    layer.lora_A.data, layer.lora_B.data = torch.eye(4).double(), wanted
    torch.testing.assert_close(layer.merged()[0], layer.base.weight + wanted)


# Which layers


def test_targets_are_endings_of_names_and_all_leaves_out_the_head():
    model = plain()
    assert len(select_linears(model, "all")) == 7 * SHAPE.n_layer
    assert list(select_linears(model, ["layers.1.mlp.up_proj"])) == [
        "layers.1.mlp.up_proj"
    ]
    assert len(select_linears(model, ("q_proj", "v_proj"))) == 4


def test_an_unknown_target_is_refused_with_a_list_of_what_there_is():
    model = plain()
    with pytest.raises(ValueError, match=r"q_proj.*up_proj.*got 'query'"):
        apply_lora(model, targets=("q_proj", "query"))
    with pytest.raises(ValueError, match="at least one name"):
        apply_lora(model, targets=())
    assert count_trainable(model)[0] == count_trainable(model)[1]  # unchanged
    with pytest.raises(ValueError, match="among"):  # "proj" is the end of no name
        apply_lora(model, targets="proj")


def test_a_tied_head_is_refused_and_an_untied_one_is_not():
    with pytest.raises(ValueError, match="tied=False"):
        apply_lora(plain(), targets="lm_head")
    untied = GPTConfig(40, n_layer=1, n_head=2, n_embd=16, tied=False)
    model = apply_lora(plain(config=untied), rank=2, targets="lm_head")
    assert list(lora_layers(model)) == ["lm_head"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 17}, "rank must be in 1..min.*smaller rank or full"),
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.0}, "rank must be"),
        ({"alpha": 0}, "alpha must be positive"),
        ({"alpha": float("nan")}, "alpha must be positive"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_settings_out_of_range_are_refused_and_the_model_is_unchanged(settings, words):
    model = plain()
    with pytest.raises(ValueError, match=words):
        apply_lora(model, **({"rank": 2, "targets": "q_proj"} | settings))
    assert isinstance(model.layers[0].self_attn.q_proj, nn.Linear)
    assert all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_goes_to_other_layers_and_the_first_goes_on_learning():
    model = apply_lora(plain(), 2, targets="q_proj")
    apply_lora(model, 2, targets="v_proj")
    assert len(lora_layers(model)) == 4
    assert all(layer.lora_B.requires_grad for layer in lora_layers(model).values())
    with pytest.raises(ValueError, match="q_proj"):  # has one already
        apply_lora(model, 2, targets="q_proj")


def test_frozen_after_it_was_added_the_adapter_would_be_frozen_too():
    model = adapt(plain(), "q_proj", lambda base: LoRALinear(base, 2, 4))
    learns = {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"lora_A", "lora_B"}


def test_half_precision_bases_get_factors_of_their_type():
    model = apply_lora(plain().to(torch.bfloat16), 2)
    assert (
        lora_layers(model)["layers.0.self_attn.q_proj"].lora_A.dtype is torch.bfloat16
    )
    assert model(TOKENS).dtype is torch.bfloat16


# Taking adapters out, putting them in, adding them


def test_swapping_brings_back_exactly_what_was_learned():
    model = shaken(KINDS["lora"](plain()), seed=1)
    first, said = lora_state(model), model(TOKENS)
    shaken(model, seed=2)
    assert not torch.equal(model(TOKENS), said)
    assert torch.equal(load_lora_state(model, first)(TOKENS), said)


def test_swapping_refuses_others_layers_others_ranks_and_merged_models():
    model = apply_lora(plain(), 2)
    for other in (apply_lora(plain(), 3), apply_lora(plain(), 2, targets="k_proj")):
        with pytest.raises(ValueError, match="settings of the adapter"):
            load_lora_state(model, lora_state(other))
    state = lora_state(model)
    with pytest.raises(ValueError, match="unmerge"):
        load_lora_state(merge(model), state)


def test_a_composition_is_the_weighted_sum_of_the_changes():
    models = [shaken(apply_lora(plain(), 2, 6), seed) for seed in (1, 2)]
    states = [lora_state(model) for model in models]
    sum_ = compose_lora(apply_lora(plain(), 2, 6), states, [0.7, -0.2])
    for name, layer in lora_layers(sum_).items():
        deltas = [lora_layers(model)[name].delta() for model in models]
        torch.testing.assert_close(layer.delta(), 0.7 * deltas[0] - 0.2 * deltas[1])
        assert layer.rank == 4


def test_the_mean_of_factors_is_not_the_mean_of_changes():
    models = [shaken(apply_lora(plain(), 2, 6), seed) for seed in (1, 2)]
    a, b = (lora_layers(m)["layers.0.self_attn.q_proj"] for m in models)
    mean_of_factors = a.scaling * (
        (a.lora_B + b.lora_B) / 2 @ ((a.lora_A + b.lora_A) / 2)
    )
    mean_of_changes = (a.delta() + b.delta()) / 2
    off = (mean_of_factors - mean_of_changes).norm() / mean_of_changes.norm()
    assert off > 0.3


def test_compositions_that_make_no_sense_are_refused():
    model = apply_lora(plain(), 2)
    state = lora_state(model)
    with pytest.raises(ValueError, match="one for each of 2"):
        compose_lora(model, [state, state], [1.0])
    with pytest.raises(ValueError, match="one for each of 0"):
        compose_lora(model, [], [])
    dora = lora_state(apply_lora(plain(), 2, layer=DoRALinear))
    with pytest.raises(ValueError, match="LoRAs of the same layers"):
        compose_lora(model, [dora], [1.0])
    other = lora_state(apply_lora(plain(), 2, targets="k_proj"))
    with pytest.raises(ValueError, match="same layers"):
        compose_lora(model, [state, other], [0.5, 0.5])


# Files


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_saved_and_loaded_it_answers_alike(kind, tmp_path):
    model = shaken(KINDS[kind](plain()))
    save_lora(model, tmp_path / "adapter")
    again = load_lora(plain(), tmp_path / "adapter")
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert count_trainable(again) == count_trainable(model)


def test_bad_folders_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of an adapter"):
        load_lora(plain(), tmp_path / "nothing")
    folder = save_lora(apply_lora(plain(), 2), tmp_path / "adapter")
    config = folder / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"LORA"', '"IA3"'))
    with pytest.raises(ValueError, match="peft_type"):
        load_lora(plain(), folder)
    config.write_text(text)
    small = GPTConfig(40, n_layer=1, n_head=4, n_embd=16)
    with pytest.raises(ValueError, match="targets"):
        load_lora(plain(config=small), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="safetensors"):
        load_lora(plain(), folder)


def test_layers_of_different_settings_do_not_fit_one_file(tmp_path):
    model = apply_lora(apply_lora(plain(), 2), 3, targets="k_proj")
    with pytest.raises(ValueError, match="one setting"):
        save_lora(model, tmp_path)


def test_a_copy_of_an_adapted_model_is_its_own():
    model = shaken(KINDS["lora"](plain()))
    twin = copy.deepcopy(model)
    merge(twin)
    assert lora_layers(model)["layers.0.self_attn.q_proj"].plain is None
