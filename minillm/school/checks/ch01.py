"""The exercises of chapter 01: the next-token loss, what it costs, and its rivals."""

from minillm.school.checks.ch01_emergence import EMERGENCE
from minillm.school.checks.ch01_hidden import HIDDEN_TOKENS
from minillm.school.checks.ch01_losses import NEXT_TOKEN_LOSS
from minillm.school.checks.ch01_numbers import NOISY_CORPUS, STAGE_COSTS
from minillm.school.checks.ch01_perplexity import PERPLEXITY
from minillm.school.checks.ch01_shift import DOUBLE_SHIFT
from minillm.school.checks.ch01_spans import SPAN_CORRUPTION

EXERCISES = (
    NEXT_TOKEN_LOSS,
    PERPLEXITY,
    DOUBLE_SHIFT,
    HIDDEN_TOKENS,
    SPAN_CORRUPTION,
    NOISY_CORPUS,
    STAGE_COSTS,
    EMERGENCE,
)
