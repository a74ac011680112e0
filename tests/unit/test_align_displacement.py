"""Likelihood displacement in four responses: it shows, and it can be mended."""

import pytest
import torch

from minillm.alignment.displacement import (
    FEATURES,
    LOSSES,
    LR,
    RESPONSES,
    Displacement,
    displace,
    outcome,
)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_margin_grows_while_the_chosen_response_becomes_rarer(loss):
    path = displace(Displacement(loss))
    margin = path[:, 0] - path[:, 1]
    assert (margin.diff() > -1e-12).all() and margin[-1] > 0.9
    assert path[-1, 0] < path[0, 0] and path[-1, 2] > path[0, 2]


def test_the_first_step_follows_the_difference_of_the_features():
    beta = 0.5
    path = displace(Displacement(beta=beta, steps=1))
    features = torch.tensor(FEATURES, dtype=torch.float64)
    moved = LR * beta / 2 * (features[0] - features[1])  # half of the verdicts are news
    torch.testing.assert_close(path[1], (features @ moved).log_softmax(-1))


def test_probabilities_add_to_one_and_training_begins_where_nothing_is_known():
    path = displace(Displacement(steps=7))
    assert path.shape == (8, len(RESPONSES))
    torch.testing.assert_close(path.exp().sum(1), torch.ones(8, dtype=torch.float64))
    assert path[0].exp().tolist() == pytest.approx([0.25] * 4)


def test_a_little_of_the_nll_mends_it_and_a_lot_is_fine_tuning():
    assert all(outcome(Displacement(nll=0.2)).values())
    *kept, near = outcome(Displacement(nll=1.0)).values()
    assert all(kept) and not near


def test_the_nll_is_that_of_the_chosen_response():
    """With hardly any preference the chosen response is imitated and nothing else."""
    path = displace(Displacement(beta=1e-6, nll=1.0, steps=1_000))
    assert path[-1, 0].exp() > 0.98


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kto"}, "loss must be one of"),
        ({"beta": 0.0}, "beta must be"),
        ({"nll": -1.0}, "nll must be at least 0"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 10_000}, "steps must be at most 1,000"),
    ],
)
def test_settings_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Displacement(**settings)
