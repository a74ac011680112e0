"""Averages of weights: equal ones change nothing, noisy ones come nearer."""

import pytest
import torch

from minillm.compression.merging import soup
from minillm.model import GPT, GPTConfig
from minillm.training import load_model, save_checkpoint
from minillm.training.averaging import WeightAverage, average_checkpoints

CONFIG = GPTConfig(17, n_layer=1, n_head=2, n_embd=16)


@pytest.mark.parametrize("decay", [None, 0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_average_of_equal_weights_is_these_weights_bit_for_bit(decay, dtype):
    weights = {name: w.to(dtype) for name, w in GPT(CONFIG).weights().items()}
    mean = WeightAverage(decay)
    for _ in range(7):
        mean.add(weights)
    for name, w in mean.weights().items():
        assert w.equal(weights[name]) and w.dtype == dtype


def test_the_uniform_average_is_the_soup_and_the_other_forgets():
    models = [{"w": torch.randn(3, dtype=torch.float64)} for _ in range(5)]
    uniform, fading = WeightAverage(), WeightAverage(0.5)
    for model in models:
        uniform.add(model)
        fading.add(model)
    torch.testing.assert_close(uniform.weights()["w"], soup(models)["w"])
    a, b, c, d, e = (model["w"] for model in models)
    expected = a / 16 + b / 16 + c / 8 + d / 4 + e / 2
    torch.testing.assert_close(fading.weights()["w"], expected)


def test_what_was_added_may_be_trained_on_and_what_was_read_stays():
    w, mean = torch.ones(2, dtype=torch.float64), WeightAverage()
    mean.add({"w": w})
    w += 1
    read = mean.weights()["w"]
    mean.add({"w": w})
    assert read.tolist() == [1, 1] and mean.weights()["w"].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("decay", [None, 0.98])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_on_a_noisy_quadratic_the_average_is_nearer_the_minimum(seed, decay):
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.linspace(0.3, 3, 20)
    w, mean, distances = torch.ones(20), WeightAverage(decay), []
    for step in range(600):
        gradient = curvature * w + torch.randn(20, generator=generator)
        w = w - 0.3 * gradient
        if step >= 100:  # when it dances around 0, the minimum
            mean.add({"w": w})
            distances.append((curvature * w.square()).sum().item())
    reached = (curvature * mean.weights()["w"].square()).sum().item()
    assert reached < 0.3 * sum(distances) / len(distances)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_average_to_a_model_with_the_mean_of_their_weights(tmp_path, tied):
    paths, models = [], []
    for i in range(3):
        models.append(GPT(GPTConfig(17, n_layer=1, n_head=2, n_embd=16, tied=tied)))
        paths.append(tmp_path / f"{i}.safetensors")
        save_checkpoint(paths[-1], models[-1], [], i, {})
    found, mean = average_checkpoints(paths), soup([m.weights() for m in models])
    for name, w in found.weights().items():
        torch.testing.assert_close(w, mean[name])
    for name, w in average_checkpoints(paths[:1] * 3).weights().items():
        assert w.equal(load_model(paths[0]).weights()[name])
    tokens = torch.arange(6)[None]
    assert found(tokens).isfinite().all()


def test_what_cannot_be_averaged_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1"):
        WeightAverage(1.0)
    mean = WeightAverage()
    with pytest.raises(ValueError, match="add weights first"):
        mean.weights()
    mean.add({"w": torch.ones(2)})
    for other in ({"v": torch.ones(2)}, {"w": torch.ones(3)}):
        with pytest.raises(ValueError, match="of the first one's names and shapes"):
            mean.add(other)
    assert mean.weights()["w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="paths must be at least one"):
        average_checkpoints([])
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        average_checkpoints([tmp_path / "none.safetensors"])
