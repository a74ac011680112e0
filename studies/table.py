"""Findings, made from the committed results of the studies.

python studies/table.py         one of each, for the main README
python studies/table.py --all   all of them, for studies/README.md
"""

import sys
from statistics import fmean, stdev

import scaling_fits

from minillm.school.studies import Study, load_study
from minillm.school.tiny_sft import HELD_OUT
from minillm.training.scaling_fit import jackknife
from minillm.world import KINDS, World
from minillm.world.asking import MIXTURE
from minillm.world.instructions import instructions
from minillm.world.lore import PERSON
from minillm.world.preferences import true_reward

ARMS = ("1,200 steps", "2,000 steps")  # of the study of the tour
PREFERRED = ("DPO, pairs from elsewhere", "pair_accuracy")


def told(values: list[float], percent: bool = False) -> str:
    """Mean and standard deviation over seeds.

    >>> told([0.5, 0.6, 0.7], percent=True)
    '60 % ± 10'
    """
    if percent:
        return f"{100 * fmean(values):.0f} % ± {100 * stdev(values):.0f}"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, numbers on the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of(study: Study, arm: str, *path: str) -> list[float]:
    """A measure of an arm, however deep it lies in the results."""
    found = study.values(arm, path[0])
    for name in path[1:]:
        found = [value[name] for value in found]
    return found


def tour_table() -> str:
    """Truth beside measurement for the main job."""
    study, (guess, best) = load_study("03_tour"), truths()
    rows = [
        (f"excess over the floor: {kind} (nats per token)", "0", ("excess", kind))
        for kind in (*KINDS, "total")
    ]
    rows += [
        (f"facts recalled, people of {group}", "100 %", ("recall", group))
        for group in study.values(ARMS[0], "recall")[0]
        if group.startswith("rank")
    ]
    rows += [
        ("chains of two facts", "100 %", ("recall", "two-hop")),
        ("sums and tasks, as documents put them", "100 %", ("recall", "skills")),
        ("calibration error of these answers", "0", ("calibration error",)),
        ("confidence about people who do not exist", guess, ("confidence", "nobody")),
    ]
    rows += [
        (f"held-out instructions: {topic}", "100 %", ("responses", topic))
        for topic in MIXTURE.texts
    ]
    rows.append(("true reward of the responses", best, ("responses", "reward")))
    body = [
        [name, truth, *(told(of(study, arm, *path), "%" in truth) for arm in ARMS)]
        for name, truth, path in rows
    ]
    return table(["the main job", "truth", *ARMS], body)


def truths() -> tuple[str, str]:
    """The confidence that a guess deserves, and the reward of good responses."""
    lore = World().lore
    guess = fmean(1 / len(relation.values.texts) for relation in lore.of(PERSON))
    asked = instructions(lore, HELD_OUT, "tour", held_out=True)
    best = fmean(true_reward(each.question, each.good) for each in asked)
    return f"{guess:.3f} or less", f"{best:.3f}"


def optimizer_table() -> str:
    """Excess over the floor for each optimizer and rate."""
    study = load_study("01_optimizers")
    rows = [
        [
            arm,
            told(of(study, arm, "excess")),
            f"{fmean(of(study, arm, 'cpu_seconds')):.0f}",
        ]
        for arm in study.settings
    ]
    return table(["optimizer, learning rate", "excess (nats per token)", "CPU s"], rows)


def recall_table() -> str:
    """Recall by rank for each width."""
    study = load_study("02_size_and_recall")
    groups = list(study.values(next(iter(study.settings)), "recall by rank")[0])
    rows = [
        [arm, *(told(of(study, arm, "recall by rank", g), True) for g in groups)]
        for arm in study.settings
    ]
    return table(["facts recalled by rank", *groups], rows)


def objectives_table() -> str:
    """What each objective knows after equal compute."""
    study = load_study("04_objectives")
    rows = [
        [
            arm,
            f"{study.mean(arm, 'targets a row'):.0f}",
            told(study.values(arm, "chosen"), True),
        ]
        for arm in study.settings
        if "half" not in arm
    ]
    rows.append(["guessing", "", told(study.values("causal", "chance"), True)])
    return table(["objective, equal compute", "targets a row", "facts known"], rows)


def measured_table(name: str, first: str, columns: dict[str, tuple[str, bool]]) -> str:
    """All arms of a study; a column has a measure, which may be a percentage."""
    study = load_study(name)
    rows = [
        [arm, *(told(study.values(arm, m), percent) for m, percent in columns.values())]
        for arm in study.settings
    ]
    return table([first, *columns], rows)


def family_table() -> str:
    """What losses on preferences teach: what is said, and what is preferred."""
    columns = {
        "true reward": ("reward", False),
        "right": ("right", True),
        "KL (nats)": ("kl", False),
        "pairs from elsewhere in the true order": ("accuracy", True),
        "their chosen responses (nats)": ("chosen_change", False),
    }
    return measured_table("06_dpo_family", "equally many pairs", columns)


def displacement_table() -> str:
    """Where the mass goes if two refusals are compared."""
    columns = {
        "chosen (nats)": ("chosen_change", False),
        "rejected (nats)": ("rejected_change", False),
        "refused before": ("right_before", True),
        "refused after": ("right", True),
    }
    return measured_table("07_displacement", "pairs of two refusals", columns)


def sums_table() -> str:
    """What pairs and verified results teach about sums."""
    columns = {
        "right before": ("before", True),
        "right after": ("after", True),
        "pairs from elsewhere in order": ("pair_accuracy", True),
        "pairs of its own in order": ("own_accuracy", True),
    }
    return measured_table("08_where_dpo_fails", "held-out sums", columns)


def annotators_table() -> str:
    """What DPO learns from whom."""
    columns = {
        "true reward": ("reward", False),
        "tokens": ("tokens", False),
        "agrees with them": ("agreement", True),
        "true order": ("accuracy", True),
        "prefers the longer": ("longer", True),
        "prefers the wrong": ("wrong", True),
    }
    return measured_table("09_annotators", "DPO on verdicts of", columns)


def closed_world_table() -> str:
    """Distance to the best policy for each method and price of KL."""
    study = load_study("05_closed_world")
    arms = [arm.rsplit(", beta ", 1) for arm in study.settings]
    methods, betas = (list(dict.fromkeys(names)) for names in zip(*arms, strict=True))

    def row(name: str, method: str, measure: str) -> list[str]:
        found = (study.values(f"{method}, beta {beta}", measure) for beta in betas)
        return [name, *map(told, found)]

    rows = [row("before training", methods[0], "start_gap")]
    rows += [row(method, method, "gap") for method in methods]
    rows.append(row("the last, to the fixed point of k3", methods[-1], "k3_gap"))
    head = "KL to the best policy (nats)"
    return table([head, *(f"beta {beta}" for beta in betas)], rows)


def overoptimisation_table() -> str:
    """True and learned reward at the start, at the summit and at the end."""
    study = load_study("10_overoptimisation")
    columns = {
        "true reward, at first": "true_first",
        "at its best": "true_best",
        "KL there (nats)": "kl_best",
        "at last": "true_last",
        "KL at last": "kl_last",
        "learned reward at last": "proxy_last",
    }
    rows = [
        [arm, *(told(study.values(arm, measure)) for measure in columns.values())]
        for arm in study.settings
    ]
    return table(["PPO on a learned reward", *columns], rows)


def equal_tokens_table() -> str:
    """Accuracy on held-out sums after equal numbers of generated tokens."""
    study = load_study("11_equal_tokens")
    arms = list(study.settings)
    places = (0, 2, 4, -1)
    tokens = [study.values(arms[0], "tokens")[0][place] for place in places]
    head = [f"after {round(n, -3) // 1000},000 tokens" for n in tokens[1:]]
    rows = []
    for arm in arms:
        curves = study.values(arm, "accuracy")
        at = [told([curve[place] for curve in curves], True) for place in places]
        rows.append([arm, *at, f"{study.mean(arm, 'cpu_seconds'):.0f}"])
    return table(["held-out sums right", "before", *head, "CPU s"], rows)


def scaling_table() -> str:
    """What was fitted beside the truth, and how far each point is above it."""
    study = load_study("16_scaling")
    head = ["60 runs at 20 points", "E", "alpha", "beta", "residual"]
    fits = table(head, scaling_fits.rows())
    sizes = list(dict.fromkeys(study.values(arm, "N")[0] for arm in study.settings))
    read = list(dict.fromkeys(study.values(arm, "D")[0] for arm in study.settings))

    def excess(N: int, D: int) -> str:
        found = (r["loss"] for r in study.runs if (r["N"], r["D"]) == (N, D))
        return told([loss - scaling_fits.ENTROPY for loss in found])

    rows = [[f"{N:,}", *(excess(N, D) for D in read)] for N in sizes]
    head = [f"{D / 1e6:.1f} M tokens" for D in read]
    above = table(["parameters; nats above the truth", *head], rows)
    picture = "![Loss over tokens for five sizes](results/16_scaling.png)"
    return f"{fits}\n\n{above}\n\n{picture}"


def scaling_finding() -> str:
    """The fitted entropy beside the true one."""
    E, law = scaling_fits.ENTROPY, scaling_fits.law()
    worst = max(abs(each.E / E - 1) for each in jackknife(*scaling_fits.runs()))
    return (
        f"entropy, nats a fact: true {E:.3f}, fitted {law.E:.3f}, which is "
        f"{100 * abs(law.E / E - 1):.1f} % off, and {100 * worst:.1f} % at worst if a "
        "point is left out"
    )


def rank_table() -> str:
    """What each rank leaves of a change of rank 4, and at which rate it was best."""
    study = load_study("12_planted_rank")
    rows = []
    for arm in [arm for arm in study.settings if arm.startswith("layer")]:
        rank = arm.rpartition(" ")[2]
        noisy, found = f"noisy layer, rank {rank}", [rank, told(of(study, arm, "gap"))]
        found += [told(of(study, arm, "best")), told(of(study, noisy, "gap"))]
        found.append(told(of(study, noisy, "best")))
        for gpt in (f"GPT, rank {rank}", f"GPT, rs, rank {rank}"):
            if gpt in study.settings:
                rates = sorted(set(of(study, gpt, "rate")))
                at = " or ".join(f"{rate:g}" for rate in rates)
                found.append(f"{told(of(study, gpt, 'gap'))} at {at}")
            else:
                found.append("")
        rows.append(found)
    head = ["LoRA's rank, where 4 is right", "gap of a layer", "closed form"]
    head += ["from noisy examples", "closed form", "gap of a GPT", "with rsLoRA"]
    return table(head, rows)


def peft_table() -> str:
    """What each way of fine-tuning costs and gives."""
    study, rows = load_study("13_peft_table"), []
    for arm, settings in study.settings.items():
        costs = [""] * 3
        if settings["lr"]:
            costs = [f"{study.mean(arm, 'trained'):,.0f}"]
            costs.append(f"{study.mean(arm, 'held') / 1e3:,.0f}")
            costs.append(f"{study.mean(arm, 'seconds'):.1f}")
        loss, forgotten = (told(of(study, arm, m)) for m in ("loss", "forgotten"))
        shares = [told(of(study, arm, m), True) for m in ("right", "facts")]
        rows.append([arm, *costs, loss, *shares, forgotten])
    head = ["200 steps, each at its best rate", "trained", "held (kB)", "CPU s", "loss"]
    head += ["right", "facts right", "forgotten (nats per token)"]
    return table(head, rows)


def bits_table() -> str:
    """What each format holds, and what that costs."""
    study = load_study("14_quality_against_bits")
    start, rows = of(study, "float32", "excess"), []
    for arm in study.settings:
        more = [a - b for a, b in zip(of(study, arm, "excess"), start, strict=True)]
        held = f"{study.mean(arm, 'bits'):.2f}", f"{study.mean(arm, 'bytes') / 1e3:.0f}"
        share = told(of(study, arm, "facts"), True)
        rows.append([arm, *held, told(of(study, arm, "excess")), told(more), share])
    head = ["format of the blocks", "bits a weight", "model (kB)"]
    head += ["excess (nats per token)", "more than in float32", "facts recalled"]
    return table(head, rows)


def experts_table() -> str:
    """What experts add at equal operations, their load, and who does what."""
    study, rows = load_study("15_moe"), []
    ranks = list(study.values("dense", "recall by rank")[0])
    told_of = {
        "entropy of the load (even: 2.079)": ("at last",),
        "expert and domain share (of 1.752)": ("nats", "domain"),
        "by the token alone": ("nats", "domain, by token"),
        "by chance": ("nats", "domain, by chance"),
    }
    for arm in study.settings:
        recall = [told(of(study, arm, "recall by rank", r), True) for r in ranks]
        paths = [] if arm.startswith("dense") else told_of.values()
        rest = [told(of(study, arm, *path)) for path in paths] or [""] * len(told_of)
        rows.append([arm, told(of(study, arm, "excess")), *recall, *rest])
    facts = [f"facts of rank {r}" for r in ranks]
    head = ["all in nats, facts in percent", "excess", *facts, *told_of]
    return table(head, rows)


TABLES = {
    "01_optimizers": optimizer_table,
    "02_size_and_recall": recall_table,
    "03_tour": tour_table,
    "04_objectives": objectives_table,
    "05_closed_world": closed_world_table,
    "06_dpo_family": family_table,
    "07_displacement": displacement_table,
    "08_where_dpo_fails": sums_table,
    "09_annotators": annotators_table,
    "10_overoptimisation": overoptimisation_table,
    "11_equal_tokens": equal_tokens_table,
    "12_planted_rank": rank_table,
    "13_peft_table": peft_table,
    "14_quality_against_bits": bits_table,
    "15_moe": experts_table,
    "16_scaling": scaling_table,
}
HEAD = """# What was measured

Each number is the mean of three seeds, ± their standard deviation. What a study
compares and what it cannot say stands at the head of its script; the settings and every
single run are in `results/`. This page is made by `python studies/table.py --all`.
"""

# One finding of each study: words, and the arm and measure whose number follows them.
RAREST, BEST = ("recall by rank", "201-400"), "DPO, beta 0.1"
FINDINGS = {
    "01_optimizers": [
        ("excess over the floor, nats a token: Muon", "Muon 0.01", "excess"),
        (", AdamW at its best rate", "AdamW 0.005", "excess"),
    ],
    "02_size_and_recall": [
        ("facts about the rarest people recalled: 32 wide", "32 wide", *RAREST),
        (", 128 wide", "128 wide", *RAREST),
    ],
    "03_tour": [
        ("excess over the floor after 1,200 steps", ARMS[0], "excess", "total"),
        (", after 2,000", ARMS[1], "excess", "total"),
        ("; confidence about nobody", ARMS[0], "confidence", "nobody"),
    ],
    "04_objectives": [
        ("facts known with equal compute: next token", "causal", "chosen"),
        (", masked tokens", "masked", "chosen"),
    ],
    "05_closed_world": [
        ("KL to the best policy, nats: PPO", "PPO, beta 0.5", "gap"),
        (", DPO", "DPO, beta 0.5", "gap"),
        (", GRPO with k3 in its loss", "GRPO, KL in loss, beta 0.5", "gap"),
    ],
    "06_dpo_family": [
        ("true reward: fine-tuned", "SFT", "reward"),
        (", DPO on pairs from elsewhere", BEST, "reward"),
        (", of which it orders rightly", BEST, "accuracy"),
        (", online DPO", "online DPO", "reward"),
    ],
    "07_displacement": [
        ("strangers refused before", "DPO", "right_before"),
        (" and after DPO has preferred one of two like refusals", "DPO", "right"),
    ],
    "08_where_dpo_fails": [
        ("sums right before", "DPO, pairs from elsewhere", "before"),
        (" and after DPO on right sums", "DPO, pairs from elsewhere", "after"),
        (", which it then prefers to wrong ones in", *PREFERRED),
    ],
    "09_annotators": [
        ("the longer response is preferred after fair verdicts", "fair", "longer"),
        (", after those of annotators who like length", "length-biased", "longer"),
    ],
    "10_overoptimisation": [
        ("true reward at first", "beta 0", "true_first"),
        (", without a price of KL at last", "beta 0", "true_last"),
        (", with one and an ensemble", "beta 0.1, the worst of three", "true_last"),
    ],
    "11_equal_tokens": [
        ("new sums right before", "GRPO", "before"),
        (", after 100,000 tokens: GRPO", "GRPO", "after"),
        (", PPO", "PPO", "after"),
        (", DPO", "DPO", "after"),
        (", rejection sampling", "rejection sampling", "after"),
    ],
    "12_planted_rank": [
        (
            "of a change of rank 4 in a GPT remains: LoRA of rank 2",
            "GPT, rank 2",
            "gap",
        ),
        (", 4", "GPT, rank 4", "gap"),
        (", 32", "GPT, rank 32", "gap"),
        ("; in a layer, from noisy examples: 4", "noisy layer, rank 4", "gap"),
        (", 32", "noisy layer, rank 32", "gap"),
    ],
    "13_peft_table": [
        ("facts right: full fine-tuning", "full", "facts"),
        (", LoRA 8", "LoRA 8", "facts"),
        (", IA3", "IA3", "facts"),
        ("; forgotten, nats a token: full", "full", "forgotten"),
        (", LoRA 8", "LoRA 8", "forgotten"),
        ("; loss if words are new: full", "full, new words", "loss"),
        (", LoRA 8", "LoRA 8, new words", "loss"),
    ],
    "14_quality_against_bits": [
        ("excess, nats a token, in two bits: rounded", "RTN 2", "excess"),
        (", GPTQ", "GPTQ 2", "excess"),
        (", trained on the grid", "QAT 2", "excess"),
        ("; in four: NF4", "NF4", "excess"),
        (", in 32", "float32", "excess"),
    ],
    "15_moe": [
        ("excess at equal operations, nats a token: dense", "dense", "excess"),
        (", eight experts", "experts, balancing loss", "excess"),
        ("; three times as long: dense", "dense, three times as long", "excess"),
        (", experts", "experts, three times as long", "excess"),
        ("; entropy of their load, nats", "experts, balancing loss", "at last"),
        (", without balancing", "experts, no balancing", "at last"),
    ],
    "16_scaling": scaling_finding,
}
SHARES = {"recall by rank", "confidence", "chosen", "accuracy", "right_before", "right"}
SHARES |= {"before", "after", "pair_accuracy", "longer", "facts"}


def page() -> str:
    """All tables, as ``studies/README.md`` holds them."""
    parts = [HEAD]
    for name, made in TABLES.items():
        script = f"[`{name}.py`]({name}.py)"
        parts.append(f"## {load_study(name).question}\n\n{script}\n\n{made()}\n")
    return "\n".join(parts)


def finding(name: str) -> str:
    """What a study found, in a sentence."""
    if callable(FINDINGS[name]):
        return FINDINGS[name]()
    study = load_study(name)
    return "".join(
        f"{words} {told(of(study, arm, *path), path[0] in SHARES)}"
        for words, arm, *path in FINDINGS[name]
    )


def summary() -> str:
    """A finding of each study, as the main README tells them."""
    rows = [
        [f"[{load_study(name).question}](studies/{name}.py)", finding(name)]
        for name in FINDINGS
    ]
    return table(["study", "found"], rows).replace("---:", "---")


if __name__ == "__main__":
    print(page() if "--all" in sys.argv[1:] else summary())
