"""Our sampling rules against transformers' processors, alone and one after the other.

Their processors are the classes that ``generate`` of transformers itself composes.
"""

import pytest
import torch

from minillm.model import Sampling, sampling_logprobs

transformers = pytest.importorskip("transformers")

ROWS, V = 40, 50
# Logits are continuous, so that no two tie and none falls on a threshold by chance;
# where they do, either verdict is right.
LOGITS = 3 * torch.randn(
    ROWS, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
)
TOKENS = torch.randint(V, (ROWS, 12), generator=torch.Generator().manual_seed(4))


def theirs(rules: Sampling) -> torch.Tensor:
    """Compose transformers' processors in the order of its own ``generate``."""
    steps = transformers.LogitsProcessorList()
    if rules.repetition_penalty != 1:
        steps.append(
            transformers.RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)
        )
    if rules.temperature != 1:
        steps.append(transformers.TemperatureLogitsWarper(rules.temperature))
    if rules.top_k is not None:
        steps.append(transformers.TopKLogitsWarper(rules.top_k))
    if rules.top_p is not None:
        steps.append(transformers.TopPLogitsWarper(rules.top_p))
    if rules.min_p is not None:
        steps.append(transformers.MinPLogitsWarper(rules.min_p))
    return steps(TOKENS, LOGITS.clone()).log_softmax(-1)


ALONE = [
    Sampling(temperature=0.3),
    Sampling(temperature=2.5),
    *(Sampling(top_k=k) for k in (1, 2, 7, 50, 500)),
    *(Sampling(top_p=p) for p in (0.01, 0.3, 0.9, 0.99)),
    *(Sampling(min_p=m) for m in (0.0, 0.05, 0.5, 0.999)),
    *(Sampling(repetition_penalty=r) for r in (0.7, 1.3, 5.0)),
]
TOGETHER = [
    Sampling(0.7, top_k=20, top_p=0.9),
    Sampling(1.7, top_k=5, min_p=0.1),
    Sampling(0.5, top_p=0.8, min_p=0.2, repetition_penalty=1.2),
    Sampling(1.3, top_k=30, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
    Sampling(3.0, top_k=40, top_p=0.7, repetition_penalty=0.8),
]


@pytest.mark.parametrize("rules", ALONE, ids=repr)
def test_each_rule_alone_equals_transformers_processor(rules):
    ours = sampling_logprobs(LOGITS, rules, TOKENS)
    torch.testing.assert_close(ours, theirs(rules), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rules", TOGETHER, ids=repr)
def test_rules_together_apply_in_transformers_order(rules):
    ours = sampling_logprobs(LOGITS, rules, TOKENS)
    torch.testing.assert_close(ours, theirs(rules), rtol=1e-10, atol=1e-10)


def test_the_order_matters_so_the_comparison_can_fail():
    rules = Sampling(3.0, top_p=0.7)
    filtered_first = transformers.TopPLogitsWarper(0.7)(TOKENS, LOGITS.clone()) / 3
    ours = sampling_logprobs(LOGITS, rules)
    assert not torch.equal(ours.isfinite(), filtered_first.isfinite())
