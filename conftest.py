"""What tests, doctests and nbval share; see minillm/school/nbplugin.py for the last."""

import importlib.util

import pytest
import torch

# Doctests import every module, and these import triton, which only Linux has.
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["minillm/kernels/triton_*.py"]

pytest_plugins = ["minillm.school.nbplugin"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test and doctest draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)
