"""Claims about direct preference optimisation and its relatives."""

import math

from minillm.school.claims.claim import Claim

CLAIMS = (
    Claim(
        "I1",
        "The lower beta is, the closer DPO keeps the policy to the reference.",
        lambda kls: kls[0] < kls[1],
        "It is the other way round: beta is the price of KL, so a large one keeps the "
        "policy close (Rafailov et al. 2023, 2305.18290, equation 3). (Measured: KL of "
        "the optimum in nats, for a beta of 0.1 and of 5.)",
    ),
    Claim(
        "I2",
        "DPO is by Wei, Rowland and others, ICLR 2024.",
        "documented",
        "It is by Rafailov, Sharma, Mitchell, Ermon, Manning and Finn, NeurIPS 2023 "
        "(2305.18290).",
    ),
    Claim(
        "I3",
        "To get the log-prob of a response, one sums over all positions of its row.",
        lambda share: share == 0,
        "Padding has log-probs, too, and they enter the margin. Those of the prompt "
        "cancel there, and not in rewards. (Measured: the share of the sum's terms "
        "that do not belong to the response.)",
    ),
    Claim(
        "I4",
        "The fine-tuned model itself can be passed as the reference while it trains.",
        lambda loss: abs(loss - math.log(2)) > 0.001,
        "A reference that moves along makes each log-ratio zero: the loss stays at "
        "ln 2 and nothing holds the policy. Freeze a copy, or score once before "
        "training. (Measured: the loss after some steps.)",
    ),
    Claim(
        "I5",
        "KTO's loss is a squared log-ratio, held at zero on the good side.",
        lambda slopes: slopes[0] > 0,
        "At the reference such a loss and its gradient are zero, so training never "
        "starts. KTO's loss is a sigmoid, steepest there (Ethayarajh et al. 2024, "
        "2402.01306, equation 8). (Measured: size of the gradient before the first "
        "step, of that loss and of KTO.)",
    ),
    Claim(
        "I6",
        "KTO minimises the KL of desirable responses, to keep them as they are.",
        lambda pull: pull <= 0,
        "Desirable responses should rise above the reference, and the log-ratio of one "
        "response is no KL. (Measured: the pull on a desirable log-prob at the "
        "reference; above 0 it rises.)",
    ),
    Claim(
        "I7",
        "ORPO compares by the difference of two log-probs, which is a log odds ratio.",
        lambda ratios: math.isclose(*ratios, rel_tol=0.01),
        "Odds are p / (1 - p); and without the NLL of the chosen response it would "
        "not be ORPO (Hong et al. 2024, 2403.07691, equations 4 to 7). (Measured: "
        "log-ratio and log odds ratio of 0.5 to 0.2.)",
    ),
    Claim(
        "I8",
        "IPO is DPO with the sigmoid removed.",
        lambda margin: margin > 10,
        "Without a sigmoid the margin would grow for ever. IPO is a squared loss to a "
        "finite margin (Azar et al. 2023, 2310.12036, equation 17). (Measured: the "
        "margin in nats at which it comes to rest.)",
    ),
    Claim(
        "I9",
        "CPO trains more stably than DPO.",
        "unsourced",
        "No source for it was found. CPO is DPO with a uniform reference and the NLL "
        "of the chosen response, which saves a second model (Xu et al. 2024, "
        "2401.08417).",
    ),
    Claim(
        "I10",
        "While DPO trains, beta log(policy / reference) is the reward plus a constant.",
        lambda error: error < 0.01,
        "That is so for the optimum of this reward, not on the way there. (Measured: "
        "the largest error half-way, in units of the reward.)",
    ),
    Claim(
        "I11",
        "Without a reward model DPO is hardly prone to reward hacking.",
        lambda rewards: rewards[1] >= rewards[0],
        "What annotators get wrong, its own reward gets wrong, and with a small beta "
        "the policy lives on it (Rafailov et al. 2024, 2406.02900). (Measured: true "
        "reward at the best beta and at the smallest, for annotators who like length.)",
    ),
    Claim(
        "I12",
        "DPO with LoRA takes a learning rate of 5e-7.",
        "documented",
        "That is the rate of Zephyr's full fine-tuning. Its QLoRA version was trained "
        "with 5e-6; adapters take about ten times as much as all weights do.",
    ),
    Claim(
        "I13",
        "DPO is fine with 2,000 pairs; below 5,000 examples one should fine-tune.",
        "unsourced",
        "One guide says both, and no source was found for either threshold.",
    ),
    Claim(
        "I14",
        "Rows of the dataset ultrafeedback_binarized have a field for the prompt.",
        "documented",
        "In TRL's copy of it the prompt is implicit: each row holds two conversations "
        "that begin with the same words, and their scores.",
    ),
    Claim(
        "I15",
        "DPO halves the cost of training.",
        "unsourced",
        "In memory for weights and optimiser it is half of "
        "PPO's (claim H14); no source for money or time was found.",
    ),
    Claim(
        "I16",
        "Mistral Instruct is an example of DPO.",
        "documented",
        "Mistral 7B Instruct v0.1 was fine-tuned only (2310.06825). Mixtral Instruct "
        "was fine-tuned and then trained with DPO (2401.04088).",
    ),
    Claim(
        "I17",
        "Pre-training with human preferences is Anthropic's 'pretraining with values'.",
        "documented",
        "It is by Korbak et al. 2023 (2302.08582), of Sussex, New York University and "
        "FAR AI with one author of Anthropic; what worked best was to condition on a "
        "token that says how good the text is.",
    ),
    Claim(
        "H14",
        "DPO needs twice the memory of fine-tuning.",
        lambda ratio: ratio >= 2,
        "A frozen copy has no gradient and no optimiser state: 2 bytes a weight beside "
        "16. With the reference's log-probs scored beforehand there is no copy at all. "
        "(Measured: bytes a weight of DPO for each of fine-tuning.)",
        digits=4,
    ),
)
