"""Right answers in unusual styles: what a grader must not hold against a student.

For each exercise two or more: loops instead of vectors, float64, lists, other names of
the arguments, helpers and constants of the student's own.
"""

STYLES = {
    "01.next_token_loss": {
        "loops and lists": """
            def next_token_loss(z, ids, keep=None):
                total, n = 0.0, 0
                for b in range(len(ids)):
                    for t in range(len(ids[b]) - 1):
                        if keep is None or keep[b][t + 1]:
                            row = z[b, t]
                            total = total + row.logsumexp(0) - row[ids[b, t + 1]]
                            n += 1
                return total / n
        """,
        "float64 and a gather": """
            import torch as T
            from torch.nn.functional import log_softmax

            DOUBLE = T.float64

            def next_token_loss(logits, tokens, mask=None):
                if mask is None:
                    mask = T.ones(tokens.shape)
                lp = log_softmax(logits.to(DOUBLE), dim=2)[:, :-1]
                lp = lp.gather(2, tokens[:, 1:].unsqueeze(2))[..., 0]
                w = mask[:, 1:].to(DOUBLE)
                return -(lp * w).sum() / w.sum()
        """,
        "a callable that is no function": """
            import torch
            class Loss(torch.nn.Module):
                def forward(self, logits, tokens, mask=None):
                    y = tokens[:, 1:].clone()
                    if mask is not None:
                        y[~mask[:, 1:]] = -1
                    return torch.nn.CrossEntropyLoss(ignore_index=-1)(
                        logits[:, :-1].permute(0, 2, 1), y)
            next_token_loss = Loss()
        """,
    },
    "01.perplexity": {
        "powers": """
            E = 2.718281828459045
            def perplexity(surprise, count): return E ** (surprise / count)
            def corpus_perplexity(a, b):
                s = n = 0
                for x, y in zip(a, b):
                    s += x
                    n += y
                return perplexity(s, n)
            def bits_per_byte(nats, size): return nats * 1.4426950408889634 / size
        """,
        "numpy and tensors": """
            import numpy as np
            import torch
            perplexity = lambda nats, n_tokens: np.exp(nats / n_tokens)
            def corpus_perplexity(nats, n_tokens):
                return torch.tensor(nats).sum().div(sum(n_tokens)).exp()
            def bits_per_byte(nats, n_bytes):
                return np.log2(np.exp(1)) * np.float64(nats) / n_bytes
        """,
    },
    "01.double_shift": {
        "the labels repaired": """
            import torch.nn.functional as F
            def make_labels(tokens, mask):
                return tokens.where(mask, -100)
            def loss_of_labels(logits, labels):
                return F.cross_entropy(
                    logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            def labelled_loss(logits, tokens, mask):
                return loss_of_labels(logits, make_labels(tokens, mask))
        """,
        "the loss repaired": """
            import torch.nn.functional as F
            IGNORE = -100
            def make_labels(tokens, mask):
                labels = tokens.masked_fill(~mask, IGNORE).roll(-1, dims=1)
                labels[:, -1] = IGNORE
                return labels
            def loss_of_labels(logits, labels):
                return F.cross_entropy(logits.double().flatten(0, 1), labels.flatten())
            def labelled_loss(logits, tokens, mask):
                return loss_of_labels(logits, make_labels(tokens, mask))
        """,
    },
    "01.hidden_tokens": {
        "loops and lists": """
            import math
            def hide_tokens(tokens, chosen, fate, others, mask_id):
                x, y = tokens.tolist(), []
                for r, row in enumerate(tokens.tolist()):
                    y.append([])
                    for c, token in enumerate(row):
                        y[-1].append(token if chosen[r, c] else -100)
                        if chosen[r, c] and fate[r, c] < 0.8:
                            x[r][c] = mask_id
                        elif chosen[r, c] and fate[r, c] < 0.9:
                            x[r][c] = int(others[r, c])
                return [x, y]
            def replaced_token_loss(s, a, b, real):
                total = 0
                for r in range(len(s)):
                    for c in range(len(s[r])):
                        if real[r, c]:
                            sign = 1 if a[r, c] != b[r, c] else -1
                            total = total - (sign * s[r, c]).sigmoid().log() \\
                                if abs(s[r, c]) < 10 else \\
                                total + (-sign * s[r, c]).clamp(min=0)
                return total / real.sum()
        """,
        "float64 and products": """
            import torch
            def hide_tokens(tokens, chosen, fate, others, mask_id):
                hide, swap = chosen * (fate < .8), chosen * (fate >= .8) * (fate < .9)
                inputs = tokens * ~(hide | swap) + mask_id * hide + others * swap
                return inputs.double(), (tokens * chosen - 100 * ~chosen).int()
            def replaced_token_loss(scores, tokens, corrupted, mask):
                z = scores.double()
                y = (tokens - corrupted).ne(0).double()
                each = torch.nn.functional.softplus(z) - y * z
                return (each * mask).sum() / mask.sum()
        """,
    },
    "01.span_corruption": {
        "lists": """
            def span_corruption(text, holes, marks):
                text, marks = [int(t) for t in text], list(marks)
                seen, asked, here = [], [], 0
                for a, b in holes:
                    m = marks.pop(0)
                    seen += text[here:a] + [m]
                    asked += [m] + text[a:b]
                    here = b
                return seen + text[here:], asked + marks[:1]
        """,
        "token by token": """
            import torch
            def span_corruption(tokens, spans, sentinels):
                starts = {a: i for i, (a, b) in enumerate(spans)}
                inside = {t for a, b in spans for t in range(a, b)}
                x, y = [], []
                for t, token in enumerate(tokens):
                    if t in starts:
                        x.append(torch.tensor(sentinels[starts[t]]))
                        y.append(torch.tensor(sentinels[starts[t]]))
                    (y if t in inside else x).append(token)
                y.append(torch.tensor(sentinels[len(spans)]))
                return torch.stack(x).float(), torch.stack(y).float()
        """,
    },
    "01.noisy_corpus": {
        "a list of probabilities": """
            from math import log
            def noisy_corpus(params):
                e, V = params["noise"], params["vocab_size"]
                p = [e / V] * V
                p[0] += 1 - e
                return sum(-q * log(q) for q in p)
        """,
        "torch": """
            import torch
            def noisy_corpus(p):
                probs = torch.full((p["vocab_size"],), p["noise"] / p["vocab_size"])
                probs[0] += 1 - p["noise"]
                return torch.distributions.Categorical(probs).entropy()
        """,
    },
    "01.stage_costs": {
        "one stage at a time": """
            HOUR = 60 * 60
            def dollars(flops, p):
                rate = p["flops_per_second"] * p["utilisation"]
                return flops / rate / HOUR * p["dollars_per_hour"]
            def stage_costs(p):
                N, L = p["n_params"], p["tokens_per_example"]
                out = {"dpo": dollars(16 * N * p["pairs"] * L, p)}
                out["sft"] = dollars(6 * N * L * p["sft_examples"] * p["sft_epochs"], p)
                out["pretraining"] = dollars(6 * N * p["pretraining_tokens"], p)
                return out
        """,
        "numpy": """
            import numpy as np
            def stage_costs(params):
                globals().update(params)
                tokens = np.array([pretraining_tokens,
                    sft_examples * sft_epochs * tokens_per_example,
                    2 * pairs * tokens_per_example], dtype=float)
                flops = tokens * np.array([6, 6, 8]) * n_params
                cost = flops / (flops_per_second * utilisation) / 3600
                return dict(zip(("pretraining", "sft", "dpo"), cost * dollars_per_hour))
        """,
    },
    "01.emergence": {
        "another choice": """
            from minillm.evaluation.emergence import Emergence
            SIZES = [6.5, 7.5, 8.5, 9.5, 10.5, 11.5]
            def emergence():
                return Emergence(sudden="exact match", smooth="log likelihood",
                                 length=40, sizes=tuple(SIZES))
        """,
        "a plain dictionary": """
            def emergence():
                return dict(sudden="exact match", smooth="token accuracy", length=25,
                            sizes=[6, 7, 8, 9, 10, 11, 12])
        """,
    },
    "13.sequence_logprobs": {
        "loops": """
            import torch
            def sequence_logprobs(z, ids, keep, average=False):
                out = []
                for b in range(len(ids)):
                    said = [z[b, t - 1, ids[b, t]] - z[b, t - 1].logsumexp(0)
                            for t in range(1, len(ids[b])) if keep[b, t]]
                    out.append(sum(said) / (len(said) if average else 1))
                return torch.stack(out)
        """,
        "float64 and a product": """
            import torch
            from torch.nn.functional import cross_entropy
            def sequence_logprobs(logits, tokens, mask, average=False):
                z = logits.double()[:, :-1].transpose(1, 2)
                nats = cross_entropy(z, tokens[:, 1:], reduction="none")
                m = mask[:, 1:].double()
                n = m.sum(-1) if average else torch.ones(len(m))
                return -(nats * m).sum(-1) / n
        """,
    },
    "13.dpo_loss": {
        "softplus": """
            from torch.nn.functional import softplus
            def dpo_loss(a, b, c, d, beta):
                return softplus(-beta * (a - b - c + d))
        """,
        "two rewards, float64": """
            import torch
            def reward(policy, ref, beta): return beta * (policy - ref).double()
            def dpo_loss(pi_chosen, pi_rejected, ref_chosen, ref_rejected, beta):
                both = torch.stack([reward(pi_chosen, ref_chosen, beta),
                                    reward(pi_rejected, ref_rejected, beta)])
                return -both.log_softmax(0)[0]
        """,
    },
    "13.simpo_loss": {
        "pair by pair": """
            from math import log1p
            import torch
            def simpo_loss(w, l, nw, nl, beta, gamma):
                out = []
                for i in range(len(w)):
                    x = beta * w[i] / nw[i] - beta * l[i] / nl[i] - gamma
                    out.append(torch.log1p(torch.exp(-x)))
                return torch.stack(out)
        """,
        "float64": """
            import torch
            def simpo_loss(chosen, rejected, n, m, b, g):
                ours, theirs = chosen.double().div(n), rejected.double().div(m)
                return -torch.sigmoid(b * (ours - theirs) - g).log()
        """,
    },
    "13.ipo_loss": {
        "as two rewards": """
            def ipo_loss(pc, pr, rc, rr, tau):
                good, bad = pc - rc, pr - rr
                return (good - bad).sub(1 / tau / 2).square()
        """,
        "loops": """
            import torch
            def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
                goal, out = 0.5 / beta, []
                four = chosen, rejected, ref_chosen, ref_rejected
                for a, b, c, d in zip(*four):
                    m = (a - b) - (c - d)
                    out.append(m * m - 2 * m * goal + goal * goal)
                return torch.stack(out)
        """,
    },
    "13.fresh_pairs": {
        "by counting": """
            from math import comb
            def fresh_pairs(params):
                P, K, p, n = (
                    params[k] for k in ("prompts", "responses", "right", "length")
                )
                mixed = sum(
                    comb(K, k) * p**k * (1 - p) ** (K - k) for k in range(1, K)
                )
                return {"tokens": K * n / mixed, "pairs": P * mixed}
        """,
        "numpy": """
            import numpy as np
            def fresh_pairs(given):
                p = np.float64(given["right"])
                share = 1 - np.power([p, 1 - p], given["responses"]).sum()
                pairs = given["prompts"] * share
                made = given["prompts"] * given["responses"] * given["length"]
                return {"pairs": pairs, "tokens": made / pairs}
        """,
    },
    "13.beta_and_kl": {
        "torch": """
            import torch
            def beta_and_kl(params):
                ref = torch.tensor(params["ref"], dtype=torch.float64).log()
                r = torch.tensor(params["rewards"], dtype=torch.float64)
                logp = (ref + r / params["beta"]).log_softmax(0)
                p = logp.exp()
                return {"kl": p @ (logp - ref), "reward": p @ r}
        """,
        "by the value of the optimum": """
            import numpy as np
            def beta_and_kl(given):
                q, r, b = (np.array(given[k]) for k in ("ref", "rewards", "beta"))
                w = q * np.exp(r / b)
                reward = float((w / w.sum() * r).sum())
                return {"reward": reward, "kl": reward / b - float(np.log(w.sum()))}
        """,
    },
    "13.padded_logprob": {
        "loops": """
            import torch
            def response_logprobs(logits, tokens, start, stop):
                out = []
                for b in range(len(tokens)):
                    lp = logits[b].log_softmax(-1)
                    out.append(sum(lp[t - 1, tokens[b, t]]
                                   for t in range(int(start[b]), int(stop[b]))))
                return torch.stack(out)
        """,
        "float64 and a cumulative sum": """
            import torch
            def response_logprobs(logits, tokens, prompt_lengths, lengths):
                lp = logits.double().log_softmax(-1)[:, :-1]
                lp = lp.gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
                until = torch.cat([torch.zeros(len(lp), 1), lp], 1).cumsum(1)
                row = torch.arange(len(lp))
                return until[row, lengths - 1] - until[row, prompt_lengths - 1]
        """,
    },
    "13.kto_loss": {
        "one by one": """
            import torch
            def kto_loss(policy, ref, good, z0, beta, lam_d=1.0, lam_u=1.0):
                out = []
                for p, q, y in zip(policy, ref, good):
                    v = beta * ((p - q - z0) if y else (z0 - (p - q)))
                    out.append((lam_d if y else lam_u) * (1 - torch.sigmoid(v)))
                return torch.stack(out)
        """,
        "a sign and float64": """
            import torch
            def kto_loss(policy, ref, desirable, kl, beta,
                         desirable_weight=1.0, undesirable_weight=1.0):
                s = 2 * desirable.double() - 1
                w = torch.full_like(s, undesirable_weight)
                w[desirable] = desirable_weight
                return w / (1 + torch.exp(s * beta * (policy - ref - kl)))
        """,
    },
    "13.orpo_loss": {
        "float64 and the formula": """
            import torch
            def odds(logp):
                p = logp.double().exp()
                return p / (1 - p)
            def orpo_loss(chosen, rejected, beta):
                ratio = odds(chosen) / odds(rejected)
                return -chosen.double() + beta * torch.log(1 + 1 / ratio)
        """,
        "expm1": """
            from torch import expm1
            from torch.nn.functional import softplus
            def orpo_loss(c, r, lam):
                z = c - (-expm1(c)).log() - r + (-expm1(r)).log()
                return lam * softplus(-z) - c
        """,
    },
    "13.fix_displacement": {
        "another choice": """
            from minillm.alignment.displacement import Displacement
            def fix_displacement():
                return Displacement("hinge", beta=0.5, nll=0.2, steps=60)
        """,
        "a plain dictionary": """
            def fix_displacement():
                return dict(loss="dpo", beta=0.4, nll=0.25, steps=90)
        """,
    },
}
