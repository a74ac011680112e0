"""Claims about next-token prediction, its rivals, and what they bring forth."""

from minillm.school.claims.claim import Claim


def more_often_than_not(shares: tuple[float, float]) -> str:
    """Of two shares: both above a half, none, or one of them."""
    above = sum(share > 0.5 for share in shares)
    return ("refuted", "depends", "holds")[above]


CLAIMS = (
    Claim(
        "A1",
        "Before training, the loss of a language model is typically between 2 and 4.",
        lambda loss: 2 <= loss <= 4,
        "At the start all V tokens are about equally likely, so the loss is about "
        "ln V: 10.4 for 32,000 tokens, 11.8 for 128,000. Losses of 2 to 4 come later.",
    ),
    Claim(
        "A2",
        "Cross-entropy with ignore_index=-100 keeps padding out of the loss.",
        lambda share: share == 0,
        "Only if somebody writes -100 into the labels. Where padding has an id like "
        "any other, it is a target like any other. (Measured: its share of the mean.)",
    ),
    Claim(
        "A3",
        "Masked modelling is sample-efficient, with several predictions a sequence.",
        lambda ratio: ratio >= 1,
        "It predicts 15% of the positions, next-token prediction nearly all of them. "
        "This waste is what replaced-token detection set out to mend (Clark et al. "
        "2020, section 1). (Measured: masked targets for each causal one.)",
    ),
    Claim(
        "A4",
        "Replaced-token detection gains because its task is harder than filling in.",
        lambda kept: kept > 0.5,
        "It is a choice between two. Most of the gain comes from scoring every "
        "position (Clark et al. 2020, section 3.4). (Measured: the part of the gain "
        "that is left when only 15% of the positions are scored.)",
    ),
    Claim(
        "A5",
        "Replaced-token detection trains four times as efficiently.",
        "documented",
        "One comparison: about as good as RoBERTa and XLNet with less than a quarter "
        "of their compute (Clark et al. 2020, abstract). No factor for every size.",
    ),
    Claim(
        "A6",
        "Training calls the model once for each prefix of the text.",
        lambda factor: factor <= 1,
        "One pass scores all prefixes, since no position sees what follows it. "
        "(Measured: how many times as many tokens a loop over the prefixes of 2,048 "
        "tokens would read.)",
        digits=5,
    ),
    Claim(
        "A7",
        "The most probable continuation of a bare prompt is the fact it hints at.",
        more_often_than_not,
        "Of a question, yes, if the fact is well known. A bare beginning goes on in "
        "whatever way such texts go on. (Measured: how often the fact comes next, "
        "after a question and after the name alone.)",
    ),
    Claim(
        "A8",
        "A model learns the median of its data, so that rare mistakes are outvoted.",
        lambda p: p < 0.01,
        "It learns the mixture: a mistake that makes 5% of the data is sampled 5% of "
        "the time. Greedy decoding gives the mode, and nothing gives a median. "
        "(Measured: the probability of the mistake.)",
    ),
    Claim(
        "A9",
        "When 20 to 30 percent of the data are noise, the ability collapses.",
        "unsourced",
        "No source for a threshold was found. Junk does cost capacity for facts, and "
        "marking where each text comes from wins some of it back (Allen-Zhu and Li "
        "2024, 2404.05405).",
    ),
    Claim(
        "A10",
        "Later stages build on frozen patterns of the base model.",
        lambda changed: changed == 0,
        "Full fine-tuning freezes nothing; it takes methods such as LoRA to leave the "
        "base as it was. (Measured: the share of weights that fine-tuning changed.)",
    ),
    Claim(
        "A11",
        "Large models are trained on petabytes of text.",
        lambda petabytes: petabytes >= 1,
        "15 trillion tokens of 4.4 bytes each are 66 terabytes. Petabytes are what a "
        "crawl weighs before text is taken out of it. (Measured: in petabytes.)",
    ),
    Claim(
        "A12",
        "Learning from the context appears at about ten billion parameters.",
        lambda parameters: parameters >= 1e9,
        "Such thresholds belong to the task and the metric (Schaeffer et al. 2023, "
        "2304.15004). (Measured: parameters of a model here that does it.)",
    ),
    Claim(
        "A13",
        "Following instructions emerges without explicit training.",
        "documented",
        "The table that says so adds that it takes supervised fine-tuning, which is "
        "explicit training to follow instructions.",
    ),
    Claim(
        "A14",
        "Next-token prediction is the objective of all modern language models.",
        "documented",
        "Of most decoder-only ones. T5 restores spans (Raffel et al. 2020), BERT fills "
        "in masks, diffusion models denoise, DeepSeek-V3 looks several tokens ahead.",
    ),
)
