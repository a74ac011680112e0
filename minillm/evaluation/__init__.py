"""Is it any good? Likelihood first: nats, perplexity, bits per byte, and yardsticks."""

from minillm.evaluation.perplexity import (
    Likelihood,
    bits_per_byte,
    perplexity,
    score_stream,
    token_logprobs,
)
