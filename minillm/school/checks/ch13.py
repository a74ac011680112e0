"""The exercises of chapter 13: log-probs of responses, and what to do with pairs."""

from minillm.school.checks.ch13_beta import BETA_AND_KL
from minillm.school.checks.ch13_displacement import FIX_DISPLACEMENT
from minillm.school.checks.ch13_dpo import DPO_LOSS
from minillm.school.checks.ch13_fresh import FRESH_PAIRS
from minillm.school.checks.ch13_ipo import IPO_LOSS
from minillm.school.checks.ch13_kto import KTO_LOSS
from minillm.school.checks.ch13_logprobs import SEQUENCE_LOGPROBS
from minillm.school.checks.ch13_orpo import ORPO_LOSS
from minillm.school.checks.ch13_padded import PADDED_LOGPROB
from minillm.school.checks.ch13_simpo import SIMPO_LOSS

EXERCISES = (
    SEQUENCE_LOGPROBS,
    DPO_LOSS,
    SIMPO_LOSS,
    IPO_LOSS,
    BETA_AND_KL,
    FRESH_PAIRS,
    PADDED_LOGPROB,
    KTO_LOSS,
    ORPO_LOSS,
    FIX_DISPLACEMENT,
)
