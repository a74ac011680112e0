"""How many CPU seconds GRPO takes to get new sums right, from half of them.

python benchmarks/grpo.py

The zoo's model of sums samples a group of answers to each of 64 sums a step and is told
which are right. Every few seconds sampled answers to sums that nobody ever showed are
counted; the clock stands still meanwhile. Three seeds, each until nine in ten are right
or LIMIT is over.
"""

import time
from statistics import median

from common import write_result  # one thread

from minillm.alignment import GRPOConfig, grpo, verifier_reward
from minillm.school import zoo
from minillm.school.recipes.arithmetic import (
    LONGEST,
    Arithmetic,
    sampled_accuracy,
    stop_token,
    sums,
)

GOAL, LIMIT, EVERY, COPIES = 0.9, 120, 5, 4
SETTINGS = {
    "prompts": 64,
    "group": 4,
    "lr": 1e-3,
    "clip_high": 0.28,
    "skip_equal": True,
}


class Reached(Exception):
    """Enough is known."""


def climb(seed: int) -> dict:
    """Accuracy on new sums against CPU seconds of training."""
    found = zoo.load(Arithmetic(seed=seed), progress=False)
    model, tokenizer = found.model, found.tokenizer
    verify, curve = verifier_reward(sums(), tokenizer), []
    clock = {"spent": 0.0, "since": time.process_time()}

    def look() -> None:
        clock["spent"] += time.process_time() - clock["since"]
        right = sampled_accuracy(model, tokenizer, sums(held_out=True), COPIES)
        curve.append((round(clock["spent"], 1), round(right, 4)))
        clock["since"] = time.process_time()
        if right >= GOAL or clock["spent"] > LIMIT:
            raise Reached

    def reward(which, rollouts):
        taken = clock["spent"] + time.process_time() - clock["since"]
        if taken >= EVERY * len(curve):
            look()
        return verify(which, rollouts)

    config = GRPOConfig(10**6, **SETTINGS, max_new_tokens=LONGEST, seed=seed)
    prompts = [tokenizer.encode(question.prompt) for question in sums()]
    marks = {"stop": stop_token(tokenizer), "pad": tokenizer.pad}
    try:
        grpo(model, prompts, reward, config, **marks, progress=False)
    except Reached:
        seconds, right = curve[-1]
        print(f"seed {seed}: from {curve[0][1]:.0%} to {right:.0%} in {seconds} s")
    return {"seed": seed, "curve": curve}


def main():
    runs = [climb(seed) for seed in range(3)]
    reached = [run["curve"][-1] for run in runs]
    told = {
        "before": [run["curve"][0][1] for run in runs],
        "after": [right for _, right in reached],
        "seconds": [seconds for seconds, _ in reached],
        "median_s": median(seconds for seconds, _ in reached),
    }
    settings = SETTINGS | {"goal": GOAL, "limit_s": LIMIT}
    write_result("grpo", {"settings": settings, **told, "runs": runs}, "torch")


if __name__ == "__main__":
    main()
