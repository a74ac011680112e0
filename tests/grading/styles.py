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
}
