"""What tests, doctests and nbval share; see minillm/school/nbplugin.py for the last."""

import pytest
import torch

pytest_plugins = ["minillm.school.nbplugin"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test and doctest draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)
