"""DPO and its relatives from one start, with equally many pairs: what do they teach?

All begin with the zoo's fine-tuned model and take STEPS steps of B pairs. Most read
pairs of two responses of which one was written well and one any which way, or both any
which way, ordered by a fair annotator: pairs from elsewhere, as in a data set that one
downloads. The last arms make pairs of what the model itself says: SPIN sets it against
good responses, iterative DPO has it judged in two rounds, online DPO at every step. All
are measured in the same way (``school/preferring.py``): what they say to instructions
that were held out, and how they order pairs from elsewhere that were held out. "SFT" is
the start.

Every loss had the same effort, on seed 3, which is not among the seeds here: one beta,
learning rates 3e-5, 1e-4 and 3e-4, and one more where the best was the first or the
last; the one with the highest true reward was taken. True reward then:

    rate      1e-5   3e-5   1e-4   3e-4   1e-3
    DPO              4.00   4.00   3.80   1.91
    IPO              3.93   3.93   3.99   3.66
    KTO       3.93   3.98   3.95   3.86
    SimPO     3.89   3.84   3.36   1.97
    ORPO      3.85   3.68   3.05   2.69
    CPO       3.89   3.81   3.49   2.71
    SPIN      3.91   3.88   3.34   2.41
    online           4.05   4.09   3.99           (3.91 before training)

The other betas of DPO, smoothed, robust, hinge and all iterative arms have the rate of
DPO; SimPO's margin gamma is beta / 2. SimPO and CPO come twice, because on pairs from
elsewhere one cannot tell whether the loss or the pairs are to blame.

What this cannot say: which loss is best. The betas were not tuned, the runs are short,
the model is small and its pairs are unlike what it says itself; there a loss that
imitates the chosen response (ORPO, CPO) imitates mediocre ones, too. KTO's steps cost
more, as they score each prompt with the response of another; what is sampled costs as
much as what is learned.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from minillm.alignment.dpo import dpo_loss
from minillm.alignment.feedback import Feedback, from_pairs
from minillm.alignment.judge import Judge
from minillm.alignment.kto import kto_loss
from minillm.alignment.online_dpo import iterative_dpo, online_dpo, spin
from minillm.alignment.own_responses import Ask
from minillm.alignment.preference_loop import PreferConfig, dpo, prefer
from minillm.alignment.preference_losses import hinge_loss, ipo_loss, robust_dpo_loss
from minillm.alignment.reference_free import cpo_loss, orpo_loss, simpo_loss
from minillm.model import GPT
from minillm.school.preferring import Trial, begin, judged
from minillm.school.studies import run_study
from minillm.world.instructions import instructions

QUESTION = "What do DPO and its relatives teach with equally many pairs?"
SEEDS, STEPS, B, ROUNDS = (0, 1, 2), 60, 16, 2
DPO_LR = 1e-4
WRONG = 0.15  # the part of the verdicts that "smoothed" and "robust" take for wrong
ARMS = {
    "SFT": {},
    **{f"DPO, beta {b:g}": {"loss": "dpo", "beta": b} for b in (0.03, 0.1, 0.3, 1.0)},
    "smoothed": {"loss": "smoothed"},
    "robust": {"loss": "robust"},
    "hinge": {"loss": "hinge"},
    "IPO": {"loss": "ipo", "lr": 3e-4},
    "KTO": {"loss": "kto", "lr": 3e-5},
    "SimPO": {"loss": "simpo", "beta": 2.0, "lr": 1e-5},
    "ORPO": {"loss": "orpo", "beta": 1.0, "lr": 1e-5},
    "CPO": {"loss": "cpo", "lr": 1e-5},
    "SPIN": {"loss": "dpo", "pairs": "spin", "lr": 1e-5},
    "iterative DPO": {"loss": "dpo", "pairs": "rounds"},
    "iterative SimPO": {"loss": "simpo", "pairs": "rounds", "beta": 2.0},
    "iterative CPO": {"loss": "cpo", "pairs": "rounds"},
    "online DPO": {"loss": "dpo", "pairs": "online"},
}

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo,
    "smoothed": lambda s, beta: dpo_loss(*s.sums, beta, label_smoothing=WRONG),
    "robust": lambda s, beta: robust_dpo_loss(*s.sums, beta, flip_rate=WRONG),
    "hinge": lambda s, beta: hinge_loss(*s.sums, beta),
    "ipo": lambda s, beta: ipo_loss(*s.sums, beta),
    "kto": lambda s, beta: kto_loss(*s.judged, beta),
    "simpo": lambda s, beta: simpo_loss(*s.policy_means, beta, gamma=0.5 * beta),
    "orpo": lambda s, beta: orpo_loss(*s.policy_means, beta),
    "cpo": lambda s, beta: cpo_loss(
        *s.policy_sums, beta, chosen_lengths=s.lengths.chunk(2)[0]
    ),
}
FREE = ("simpo", "orpo", "cpo")  # of a reference


def on_given(model: GPT, trial: Trial, seed: int, loss: str, config: PreferConfig):
    """Train on pairs from elsewhere; KTO on the same as single thumbs."""
    given = judged(trial.lore, STEPS * B, stream=f"train {seed}")
    pairs = trial.batches(given, seed, B)
    if loss == "kto":
        thumbs = from_pairs(pairs.rows)
        pairs = Feedback(*thumbs, pairs.T, 2 * B, pairs.pad, seed)
    ref = None if loss in FREE else trial.ref
    prefer(model, ref, pairs, config, LOSSES[loss], progress=False)


def on_its_own(
    model: GPT, trial: Trial, seed: int, loss: str, config: PreferConfig, pairs: str
):
    """Train on what the model says; the judge is as fair as the annotators are."""
    asked = [*instructions(trial.lore, STEPS * B, f"judged/train {seed}")]
    known, more = (model, trial.ref, trial.tokenizer), {"ask": Ask(seed=seed, B=B)}
    more["progress"] = False
    if pairs == "online":
        online_dpo(*known, asked, Judge(), config, loss=LOSSES[loss], **more)
        return
    part, first = replace(config, steps=STEPS // ROUNDS), asked[: len(asked) // ROUNDS]
    if pairs == "rounds":
        some = (first, Judge(), part, ROUNDS)
        iterative_dpo(*known, *some, loss=LOSSES[loss], **more)
    else:
        spin(model, trial.tokenizer, first, part, ROUNDS, **more)


def run(
    seed: int,
    loss: str = "",
    pairs: str = "given",
    beta: float = 0.1,
    lr: float = DPO_LR,
) -> dict:
    """Train from the zoo's model of this seed and measure; no loss, no training."""
    model, trial = begin(seed)
    config = PreferConfig(STEPS, beta, lr)
    if loss and pairs == "given":
        on_given(model, trial, seed, loss, config)
    elif loss:
        on_its_own(model, trial, seed, loss, config, pairs)
    return trial.measure(model)


if __name__ == "__main__":
    for seed in SEEDS:
        begin(seed)  # trained here, or the first run would pay for it
    run_study(__file__, QUESTION, ARMS, SEEDS, run)
