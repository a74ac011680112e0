# %% [markdown]
# # What does next-token prediction learn?
#
# **After this you can** write the loss of a language model from memory, say what its
# value means before, during and after training, and say what a model learns from it:
# what follows, what it remembers, and what nobody can know. You can compare next-token
# prediction with its rivals, and explain why a base model makes things up.
#
# **You need** Python, a little probability (what $\ln p$ is), and no other chapter.
#
# **Code** `minillm/training/losses.py` and `objectives.py`, `fillin.py` beside it,
# `minillm/evaluation/perplexity.py`, `floor.py` and `asking.py`. Exercises:
# `exercises/01_next_token_prediction.ipynb`.
#
# CPU 2 cores · ~50 s · < 1 GB (and once about two minutes to train the models that
# several chapters share)

# %% tags=["setup"]
import math
import runpy
from random import Random
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F

from minillm.data import Tokenizer
from minillm.evaluation.asking import accuracy, ask, confidence
from minillm.evaluation.baselines import compressor_bits_per_byte
from minillm.evaluation.ngram import KneserNey
from minillm.evaluation.perplexity import bits_per_byte, perplexity, token_logprobs
from minillm.model import GPT, GREEDY, GPTConfig, count_parameters, generate
from minillm.school import show, zoo
from minillm.school.claims import claim
from minillm.school.studies import STUDIES, load_study
from minillm.training import TrainConfig, minimise, next_token_loss
from minillm.training.fillin import scored_loss, span_rows
from minillm.training.losses import IGNORE, shift_targets
from minillm.training.objectives import mask_tokens, replaced_token_targets
from minillm.world import instructions, lore, preferences, questions

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. The labels are the text
#
# A language model reads the beginning of a text and gives every token of its vocabulary
# a probability of coming next. To train it, nobody has to label anything: the right
# answer at each place is the token that stands there in the text. This is called
# *self-supervision*.
#
# Our text comes from TinyWorld, a small language that this package makes up itself.
# People in it live somewhere, keep pets, and there are sums, lists and stories. A model
# that has read it for a minute is in our *zoo* of trained models.

# %% tags=["labels-are-the-text"]
base = zoo.load("base")  # trained now, if it has never been
model, tokenizer, world = base.model, base.tokenizer, base.world
document = world.document(9, stream="test")
ids = [tokenizer.eot, *tokenizer.encode(document.text), tokenizer.eot]
words = [tokenizer.decode([i]) for i in ids]
print(f"text: {document.text}\n")
print(f"{'the model has read ...':>36}   and is asked for")
for t in range(1, len(words)):
    print(f"{''.join(words[max(0, t - 4) : t])[-34:]!r:>36}   {words[t]!r}")

# %% [markdown]
# `<|endoftext|>` is a token, too: it says that a document ends and another may begin.
#
# ## 2. The loss: how surprised is the model?
#
# If the model gave the token that really came the probability $p$, its *surprise* is
# $-\ln p$. Certainty ($p=1$) costs nothing, $p = 1/2$ costs $\ln 2$, and a probability
# near zero costs a lot. The unit is the *nat* (with $\log_2$ it would be the bit). The
# loss is the mean over the $N$ tokens that are asked for:
#
# $$L = -\frac{1}{N} \sum_{t} \ln p(x_{t+1} \mid x_1, \ldots, x_t)$$

# %% tags=["loss-by-hand"]
tokens = torch.tensor([ids])  # one row: B = 1, T tokens
with torch.no_grad():
    logits = model(tokens)  # (B, T, V): a score for every possible next token
p = logits.softmax(-1)  # scores become probabilities
asked = tokens[0, 1:]  # the text, moved by one place
surprise = -p[0, :-1].log().gather(-1, asked[:, None])[:, 0]
assert torch.allclose(surprise.mean(), next_token_loss(logits, tokens), atol=1e-5)
print(f"{tuple(logits.shape)} scores for {len(asked)} tokens that are asked for")
print("by hand and in the package: the same loss")

# %% [markdown]
# In TinyWorld the *true* probability of each token is known as well, because the
# program that wrote the text knows what it could have written instead. So we can draw
# what the model pays beside the lowest price that anybody could pay in the mean.

# %% tags=["surprise-picture"]
account = base.known(10).accounts[9]  # kind and true price of each token
fair = [a.nats if a.kind == "irreducible" else 0.0 for a in account] + [0.0]
axes = show.figure("A name is a surprise once", "", "surprise (nats)", height=3.2)
places = range(len(surprise))
axes.bar(places, surprise.tolist(), color=show.OURS, width=0.7)
axes.step(
    [-0.5, *(i + 0.5 for i in places)], [fair[0], *fair], color=show.TRUTH, ls="--"
)
shown = [w.strip() or w for w in words[1:-1]] + ["end"]
axes.set_xticks(list(places), shown, rotation=60, ha="right")
axes.text(len(fair) - 1, max(fair), "lowest price", color=show.TRUTH, ha="right")
show.picture(axes)

# %% [markdown]
# *In the picture: one bar a token, as high as the model's surprise; a dashed line, the
# lowest price. First and last name are expensive the first time, because many people
# could have been named, and cost nothing when they are repeated. Other tokens follow
# from what stands before them.*
#
# ## 3. Two details where people get hurt
#
# **The shift.** Position $t$ is asked for token $t+1$, so scores and labels must be
# moved against each other by one place, exactly once. Here a model always knows the
# next token. Only one of three losses says so.

# %% tags=["shift"]
row = torch.arange(1, 8)[None]
knows = 9.0 * F.one_hot(row + 1, 11)  # position t is sure of token t + 1
V = knows.shape[-1]


def loss_of(scores, labels):
    return F.cross_entropy(scores.reshape(-1, V), labels.reshape(-1)).item()


print(f"shifted once:   {loss_of(knows[:, :-1], row[:, 1:]):.2f}   right")
print(f"not at all:     {loss_of(knows, row):.2f}   asks for the token that it sees")
print(
    f"shifted twice:  {loss_of(knows[:, :-2], row[:, 2:]):.2f}   asks for the one after"
)
assert math.isclose(loss_of(knows[:, :-1], row[:, 1:]), next_token_loss(knows, row))

# %% [markdown]
# What does a model learn that is trained without the shift? To say the token that it
# sees. Its loss is the best in the house, and it writes one word for ever.

# %% tags=["no-shift"]
stream = "".join(world.document(n).text for n in range(400))
stream = torch.tensor(tokenizer.encode(stream))[: 32 * 200].view(200, 32)
copier = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=32))
rates = {"lr": 1e-2, "matrix_lr": 1e-2, "weight_decay": 0.0}


def unshifted(step):
    rows = stream[torch.arange(16 * step, 16 * step + 16) % len(stream)]
    return F.cross_entropy(copier(rows).flatten(0, 1), rows.flatten())


minimise(copier, unshifted, TrainConfig(60, **rates))
made = generate(copier, [ids[:4]], 6, GREEDY, tokenizer.eot).completions()[0]
with torch.no_grad():
    seen, right = unshifted(0).item(), next_token_loss(copier(tokens), tokens).item()
print(f"its own loss: below 0.1: {seen < 0.1}; as a language model, worse than")
print(f"one that knows nothing: {right > math.log(tokenizer.vocab_size)}")
started, went_on = tokenizer.decode(ids[1:4]), tokenizer.decode(made)
print(f"it writes: {started!r} -> {went_on!r}")

# %% [markdown]
# **What is no target.** Rows of a batch have unequal lengths and are filled up with
# padding. Cross-entropy leaves out positions whose label is $-100$ (`ignore_index`).
# But somebody has to write this number into the labels. If nobody does, the padding is
# scored like text.

# %% tags=["ignore-index"]
row = torch.arange(12)[None]
real = row < 10  # the last two are padding
row = row.where(real, torch.tensor(0))
forgotten, written = shift_targets(row), shift_targets(row, real)
print("labels, nobody wrote -100:", forgotten[0, :-1].tolist())
print("labels, padding left out: ", written[0, :-1].tolist())
scored = [int((labels != IGNORE).sum()) for labels in (forgotten, written)]
share = 1 - scored[1] / scored[0]
print(f"terms in the mean: {scored[0]} and {scored[1]}\n")
claim("A2", share)

# %% [markdown]
# ## 4. Before training: ln V
#
# A new model has small random weights. Its scores are nearly equal, so each of the $V$
# tokens gets about $p = 1/V$, and the loss is about $-\ln(1/V) = \ln V$. This is the
# cheapest test of a training program that there is: look at the loss of step 0. If it
# is far above $\ln V$, the first weights are too large; far below, the labels leak.
# Scores with a standard deviation of one already cost half a nat more.

# %% tags=["start"]
new = GPT(model.config)
rows = torch.tensor([ids])
with torch.no_grad():
    at_start = next_token_loss(new(rows), rows).item()
V = model.config.vocab_size
near = abs(at_start - math.log(V)) < 0.3
print(f"V = {V:,}: ln V is {math.log(V):.1f}; a new model is within 0.3 of it: {near}")
usual = 50_257
scores = torch.randn(200, usual)  # drawn from N(0, 1)
noisy = (scores.logsumexp(-1) - scores[:, 0]).mean().item()
more = abs(noisy - math.log(usual) - 0.5) < 0.3
print(f"V = {usual:,}: ln V is {math.log(usual):.1f};", end=" ")
print(f"scores from N(0, 1) cost half a nat more: {more}")
print()
claim("A1", round(math.log(usual), 1))

# %% [markdown]
# ## 5. Perplexity, and bits per byte
#
# Two other ways to state the same loss:
#
# $$perplexity = e^{L}, \qquad
#   bits/byte = \frac{\text{sum of surprises}}{\ln 2 \cdot \text{bytes of text}}$$
#
# Perplexity is how many equally likely tokens the model hesitates between: $V$ for a
# model that knows nothing. But a token is a different amount of text in each tokenizer.
# Below, the same counting model (a 5-gram) reads the same text in two vocabularies.

# %% tags=["perplexity"]
train = "\n".join(d.text for d in world.documents(8_000))
heldout = "\n".join(d.text for d in world.documents(500, "test"))
n_bytes = len(heldout.encode())
print(
    f"{'vocabulary':>12} {'tokens':>8} {'loss':>6} {'perplexity':>11} {'bits/byte':>10}"
)
for cut in (Tokenizer(merges=()), tokenizer):
    counted = KneserNey.fit(np.array(cut.encode(train)), cut.vocab_size)
    held = np.array(cut.encode(heldout))
    nats = -counted.logprobs(held).sum()
    loss, ppl = nats / len(held), perplexity(nats, len(held))
    per_byte = bits_per_byte(nats, n_bytes)
    line = f"{cut.vocab_size:>12,} {len(held):>8,} {loss:>6.2f} {ppl:>11.2f}"
    print(f"{line} {per_byte:>10.2f}")
zipped = compressor_bits_per_byte(heldout.encode(), "xz", train.encode())
print(f"\nxz, a compressor that has read the same text: {zipped:.2f} bits/byte")

# %% [markdown]
# By loss or perplexity the model of bytes seems far better. By bits per byte it is the
# worse one. So compare losses only between models with the same tokenizer, and use bits
# per byte otherwise; even a compressor can be compared that way, because whoever
# predicts well, compresses well.
#
# **Average first, then take the exponential.** Two documents, equally long, with losses
# of 1 and 3 nats:

# %% tags=["perplexity-of-a-corpus"]
nats, counts = [10.0, 30.0], [10, 10]  # sums of surprises, and of how many tokens
right = perplexity(sum(nats), sum(counts))
wrong = fmean(perplexity(n, c) for n, c in zip(nats, counts, strict=True))
print(f"perplexity of the corpus:   {right:.1f}  = e^{math.log(right):.0f}")
print(f"mean of the perplexities:  {wrong:.1f}  too large: the hard document rules")

# %% [markdown]
# ## 6. One pass scores all prefixes
#
# It looks as if the model had to be called once for each prefix: read one token, guess
# the second; read two, guess the third. But in a causal model no position sees what
# follows it. So the score at position $t$ of one pass over the whole text is the score
# of a pass over the prefix alone. That the model always reads the true text, not its
# own guesses, is called *teacher forcing*.

# %% tags=["one-pass"]
with torch.no_grad():
    whole = model(tokens)[0]
    alone = torch.stack([model(tokens[:, : t + 1])[0, -1] for t in range(len(ids))])
print("equal scores:", torch.allclose(whole, alone, atol=1e-4))
changed = tokens.clone()
changed[0, 9] = 7  # another token at position 9
with torch.no_grad():
    same = (model(changed)[0] - whole).abs().amax(-1) < 1e-6
print("a change at position 9 leaves as they were:", same.nonzero().flatten().tolist())
T = 2_048
print(f"tokens to read for T = {T:,}: {T:,} in one pass,", end=" ")
print(f"{sum(range(1, T)):,} prefix by prefix\n")
claim("A6", sum(range(1, T)) / T)

# %% [markdown]
# The factor is about $T/2$, for training and for scoring a text. Writing is different:
# there each token must be known before the next one can be asked for.
#
# ## 7. What is learned, and in which order?
#
# In TinyWorld the loss can be taken apart. Each token is of one of three kinds, and its
# lowest price $h_t$ is known:
#
# - **predictable**: it follows from what stands before it (a name said again, the end
#   of a sum); lowest price 0;
# - **remembered**: it is a fact of the world (where somebody lives); lowest price 0 for
#   whoever has read and kept it;
# - **irreducible**: the writer was free (whom to write about); lowest price $-\ln p$.
#
# $$L - \underbrace{\frac{1}{N}\sum_t h_t}_{floor} =
#   excess_{predictable} + excess_{remembered} + excess_{irreducible} \ge 0$$
#
# The *excess* over the floor is what there is still to learn. (In the mean over many
# documents it is the divergence $KL(P\,\|\,Q)$ of the model $Q$ from the truth $P$.) We
# train a new model in a smaller TinyWorld, with few people, biographies and dialogues,
# and take its loss apart as we go.

# %% tags=["train"]
experiment = runpy.run_path(str(STUDIES / "04_objectives.py"))  # its text and model
text = experiment["text"]()
steps = experiment["STEPS"] // 2


def learn(seed, stop, every=25, schedule="wsd"):
    """Train until `stop`; look in between and at the end."""
    torch.manual_seed(seed)
    learner, looks = experiment["build"]("causal"), []
    objective = experiment["objective"]("causal", 1.0, learner, seed)

    def loss(step):
        if every and step % every == 0:
            looks.append((step, text.test.logprobs(learner), text.test.excess(learner)))
        return objective(step)

    minimise(learner, loss, TrainConfig(stop, schedule=schedule, **rates))
    looks.append((stop, text.test.logprobs(learner), text.test.excess(learner)))
    return looks


looks = learn(0, steps)

# %% tags=["loss-split"]
first, last = looks[0][2], looks[-1][2]
early = [next(excess for step, _, excess in looks if step == 100)]
early += [learn(seed, 100, None, "constant")[-1][2] for seed in (1, 2)]
print(f"before: {first.loss:.0f} nats a token; the floor is {first.floor:.1f}")
print("after 100 steps, less than 10% of the excess is left (three seeds):")
for kind in first.parts:
    print(f"   {kind:12} {[e.parts[kind] < 0.1 * first.parts[kind] for e in early]}")
print(
    f"after {steps} steps, less than 1% of all of it: {last.total < 0.01 * first.total}"
)

# %% tags=["loss-split-picture"]
axes = show.figure("Facts are learned last", "steps", "part of the excess left")
colors = dict(zip(first.parts, (show.OURS, show.WARM, show.RIVAL), strict=True))
for kind, color in colors.items():
    left = [e.parts[kind] / first.parts[kind] for *_, e in looks]
    axes.plot([s for s, *_ in looks], left, color=color)
axes.set(yscale="log", xlim=(0, steps * 1.25), xticks=range(0, steps + 1, 100))
kept = {kind: last.parts[kind] / first.parts[kind] for kind in colors}
show.spread_labels(axes, steps, [(kept[k], k, color) for k, color in colors.items()])
axes.set_yticks([1, 0.1, 0.01, 0.001], ["100%", "10%", "1%", "0.1%"])
show.picture(axes)

# %% [markdown] tags=["one-base"]
# *In the picture: three falling lines on a logarithmic scale. How likely things are
# (irreducible) and rules such as repeating a name (predictable) are learned first; the
# line of the facts (remembered) stays above them for most of the time.*
#
# Facts come late because each is rare: a rule is met in every row, a fact about one
# person only when this person is met. "It only guesses the next word" hides this: to
# guess well, a model has to copy, to follow rules, and to know who lives where. A
# *base* model that has learned all of this is the beginning of every later stage: one
# expensive training on much text, then many cheap ones for special purposes.
#
# ## 8. Reading a distribution
#
# What the model returns is not a word but a probability for each token. *Greedy*
# decoding takes the most probable one (argmax); *sampling* draws. The same model can be
# sure in one place and open in another, and both can be right.

# %% tags=["distributions"]
person = world.lore.people[0]


@torch.no_grad()
def next_probabilities(prompt):
    row = torch.tensor([[tokenizer.eot, *tokenizer.encode(prompt)]])
    return model(row)[0, -1].softmax(-1)


question = questions.fact_question(world.lore, person, "city")
for prompt in (question.prompt, f"About {person}: {person}", "Task: copy 2: k d ->"):
    top = next_probabilities(prompt).topk(8)
    likely = [tokenizer.decode([i]) for i in top.indices]
    sure = top.values[0] > 0.9
    print(repr(prompt))
    print(f"   over 90% for one token: {'yes, ' + repr(likely[0]) if sure else 'no'}")
    if not sure:
        print(f"   the eight most probable ones: {sorted(likely)}")
        print(f"   share of these eight: over 95%: {bool(top.values.sum() > 0.95)}")

# %% [markdown]
# After the question one answer is right. After the bare name eight clauses are equally
# likely (four kinds of fact, each in two wordings), and the model spreads its
# probability over them. Greedy decoding would show one of the eight, always the same.
# Drawing shows them all:

# %% tags=["sampling"]
p = next_probabilities(f"About {person}: {person}")
drawn = p.multinomial(200, replacement=True).tolist()
often = [drawn.count(token) for token in p.topk(8).indices.tolist()]
print(f"of 200 draws, more than 8 are each of the eight: {min(often) > 8}")

# %% [markdown]
# So what comes first after a prompt is a matter of how such texts go on, not only of
# what the model knows. Is the fact the most probable token?

# %% tags=["argmax-is-not-the-fact"]
known = [questions.fact_question(world.lore, p, "city") for p in world.lore.people[:50]]
firsts = {q: tokenizer.encode(" " + q.answer)[0] for q in known}
asked = [next_probabilities(q.prompt).argmax() == firsts[q] for q in known]
bare = [
    next_probabilities(f"About {q.subject}: {q.subject}").argmax() == firsts[q]
    for q in known
]
shares = [round(fmean(map(float, hits)), 1) for hits in (asked, bare)]
claim("A7", tuple(shares))

# %% [markdown]
# ## 9. A base model continues texts; it does not answer you
#
# Pre-training teaches to go on with documents. What you type is, to the model, the
# beginning of a document. Below, a user's questions about people: the model finishes
# the user's sentence as a document of its world would go on.


# %% tags=["continuation-engine"]
def go_on(prompts, n=24):
    rows = [[tokenizer.eot, *tokenizer.encode(prompt)] for prompt in prompts]
    made = generate(model, rows, n, GREEDY, tokenizer.eot).completions()
    return [tokenizer.decode(t for t in row if t != tokenizer.eot) for row in made]


requests = list(instructions.instructions(world.lore, 150, "chapter 1", held_out=True))
requests = [i for i in requests if i.topic == "person"]
texts = go_on([i.prompt for i in requests])
print(f"{requests[0].prompt!r} -> {texts[0]!r}\n")
replies = [
    preferences.features(i.question, said)["correctness"]
    for i, said in zip(requests, texts, strict=True)
]
holds = [i.question.answer in said for i, said in zip(requests, texts, strict=True)]
like_a_document = texts[0].startswith("\nAnswer:")
print(f"goes on as the dialogues in its documents do: {like_a_document}")
print(f"a reply to the user, and right: in less than 5%: {fmean(replies) < 0.05}")
print(f"the right fact is somewhere in it: in more than 80%: {fmean(holds) > 0.8}")

# %% [markdown]
# The knowledge is there, the form of a reply is not: it writes the next line of a
# dialogue that it has seen many times. The model is not polite, does not stop to ask,
# and never says that it does not know, because no document does. Fine-tuning on
# instructions (chapter 8) teaches a form. It does so by changing nearly every weight:

# %% tags=["weights-changed"]
assistant = zoo.load("sft").model
pairs = zip(model.parameters(), assistant.parameters(), strict=True)
changed = sum(int((before != after).sum()) for before, after in pairs)
n_params = count_parameters(model.config)["total"]
claim("A10", round(changed / n_params, 1))

# %% [markdown]
# ## 10. Why it makes things up
#
# To the loss, a true sentence and a likely one are the same thing. Nobody in the
# training text says "I do not know", so after "Question: where does ... live?" comes a
# city, whoever is asked about. In TinyWorld we can ask about three kinds of people:
# some that the text mentions (often or rarely), some that exist but are never
# mentioned, and some that do not exist at all. *Confidence* is the probability that the
# model gives to its own answer; an honest one is as high as the share of answers that
# are right.

# %% tags=["hallucination"]
people = {
    "1-20": world.lore.people[:20],
    "21-100": world.lore.people[20:100:2],
    "101-400": world.lore.people[100::6],
    "never\nmentioned": world.lore.silent[:50],
    "nobody": world.lore.strangers[:50],
}
relations = [relation.name for relation in world.lore.of(lore.PERSON)]
answers = {
    group: ask(
        model,
        tokenizer,
        [questions.fact_question(world.lore, p, r) for p in named for r in relations],
    )
    for group, named in people.items()
}
sure = {group: confidence(said) for group, said in answers.items()}
right = {group: accuracy(said) for group, said in answers.items()}
prior = fmean(1 / len(r.values.texts) for r in world.lore.of(lore.PERSON))

# %% tags=["hallucination-picture"]
frequent, nobody = sure["1-20"], sure["nobody"]
print("people mentioned most:", end=" ")
print(f"over 95% sure: {frequent > 0.95}, over 95% right: {right['1-20'] > 0.95}")
print(f"people who do not exist: over 40% sure: {nobody > 0.4}")
tours = load_study("03_tour").values("1,200 steps", "confidence")
sureness = ", ".join(f"{tour['nobody']:.0%}" for tour in tours)
print(f"   the same of three other models (a study): {sureness}")
print(f"what a guess deserves there: {prior:.0%}")
axes = show.figure("Half sure of people who do not exist", "", "share", height=3.4)
axes.plot(list(sure), list(sure.values()), "o-", color=show.OURS)
axes.plot(list(right), list(right.values()), "o--", color=show.TRUTH)
show.label(axes, 4, nobody, "how sure", show.OURS)
show.label(axes, 4, right["nobody"], "how often right", show.TRUTH)
axes.set(
    xlim=(-0.3, 5.3),
    ylim=(-0.05, 1.08),
    xlabel="people, by how often they are mentioned",
)
show.picture(axes)

# %% [markdown]
# *In the picture: for five groups of people, from the most mentioned to nobody, how
# sure the model is (solid) and how often it is right (dashed). The lines stay together
# for people that the text mentions and part where there is nothing to know.*
#
# A *hallucination* is no fault in the sampling and no lie. It is the loss doing its
# work: among people with facts, such names have cities, and the model has never paid
# for being sure about a person who is nobody, since nobody is never asked about in the
# text. Confidence is not useless: among people that it has read about, it tells the
# frequent from the rare. But those who are never mentioned and those who do not exist
# look alike to it.
#
# ## 11. Learning from the context
#
# Nothing in the weights changes when a model reads a prompt, and yet it can use what
# stands there. The base model does it all the time: the first mention of a stranger's
# name costs many nats, the second nearly none. It has learned to copy.
#
# But it uses only what its training text made worth using. We tell it where a stranger
# lives, and ask. In its documents no question is about an earlier sentence, so:

# %% tags=["told-and-asked"]
cities = [c for c in world.lore.cities if len(tokenizer.encode(" " + c)) == 1]
strangers, dice = world.lore.strangers[:60], Random(0)
homes = [dice.choice(cities) for _ in strangers]
asks = [questions.fact_question(world.lore, s, "city").prompt for s in strangers]
told = zip(strangers, homes, asks, strict=True)
said = go_on([f"About {s}: {s} lives in {c}.\n{q}" for s, c, q in told], 6)
used = fmean(c in text for c, text in zip(homes, said, strict=True))


def cost(text):
    row = torch.tensor([[tokenizer.eot, *tokenizer.encode(text)]])
    with torch.no_grad():
        return -token_logprobs(model(row), row)[0]


names = torch.stack([cost(f"About {s}: {s}")[[1, 2, 4, 5]] for s in strangers])
once, twice = names[:, :2].sum(1).median(), names[:, 2:].sum(1).median()
print(f"a stranger's name, first time (median): over 8 nats: {bool(once > 8)}")
print(f"the same name, second time: less than 0.5 nats: {bool(twice < 0.5)}")
print(f"told where a stranger lives, it says so in less than 10%: {used < 0.1}")

# %% [markdown]
# So the ability to learn from a context is itself learned, from text in which contexts
# are worth reading. Here is such a text: rows of pairs, a key and its value. Which
# value belongs to which key is drawn anew for each row, so that no weight can remember
# it. Three new models of the same size read such rows for a few seconds each.

# %% tags=["in-context-learning"]
KEYS, VALUES, PAIRS = 4, 8, 16
shape = GPTConfig(KEYS + VALUES, n_layer=2, n_head=2, n_embd=64, context=2 * PAIRS)


def new_rows(B, dice):
    keys = torch.randint(KEYS, (B, PAIRS), generator=dice)
    table = torch.randint(KEYS, KEYS + VALUES, (B, KEYS), generator=dice)  # of each row
    return torch.stack([keys, table.gather(1, keys)], dim=-1).flatten(1), keys


# %% tags=["pupils"]
def educate(seed):
    """Train a pupil; how often is it right after 0, 1, 2, 3 examples of the key?"""
    torch.manual_seed(seed)
    pupil, dice = GPT(shape), torch.Generator().manual_seed(seed)

    def guess_values(step):
        row, _ = new_rows(32, dice)
        targets = shift_targets(row)
        targets[:, 1::2] = IGNORE  # which key comes next is not asked
        return scored_loss(pupil, row, targets)

    minimise(pupil, guess_values, TrainConfig(200, **rates))
    row, keys = new_rows(500, dice)
    with torch.no_grad():
        hits = pupil(row)[:, :-1:2].argmax(-1) == row[:, 1::2]
    seen = [(keys[:, :i] == keys[:, i : i + 1]).sum(1) for i in range(PAIRS)]
    seen = torch.stack(seen, 1)
    return [hits[seen == shots].float().mean().item() for shots in range(4)]


pupils = [educate(seed) for seed in range(3)]

# %% tags=["shots-picture"]
title = "One example in the context is enough"
axes = show.figure(title, "examples of this key so far", "values right")
for by_shots in pupils:
    axes.plot(range(4), by_shots, "o-", color=show.OURS)
show.yardstick(axes, 1 / VALUES, f"chance: 1 of {VALUES}")
axes.set(xticks=range(4), ylim=(0, 1.05))
size = count_parameters(shape)["total"]
none, one = zip(*(by_shots[:2] for by_shots in pupils), strict=True)
guessing = [abs(right - 1 / VALUES) < 0.05 for right in none]
print(f"three pupils, no example: within 5% of chance: {guessing}")
print(f"one example: over 95% right: {[right > 0.95 for right in one]}\n")
claim("A12", size)
show.picture(axes)

# %% [markdown]
# *In the picture: three lines, one for each seed, that lie on each other. Without an
# example of a key the pupils are as good as chance; from the first example on they are
# right.*
#
# This is few-shot learning in its smallest form: the same weights, other examples,
# another answer. It appears suddenly during training, when the model finds out how to
# look for the last place where the same key stood and to copy what followed there (an
# *induction head*: Olsson et al. 2022).
#
# ## 12. When "emergence" is the metric
#
# Some abilities seem to appear all at once as models grow. Before one believes in a
# jump, one should look at the metric. If each of $n$ tokens of an answer is right with
# probability $p$, and errors are independent, *exact match* is $p^n$. It stays near
# zero while $p$ rises, and then jumps. We return to the model that section 7 trained.
# In each document some tokens have one right answer (they are predictable, or a fact).
# A token counts as right if the model gave it more than half of the probability, a
# document if all of these tokens are right.

# %% tags=["emergence"]
places = [
    [t for t, token in enumerate(account) if token.kind != "irreducible"]
    for account in text.test.accounts
]
chosen = [d for d, found in enumerate(places) if len(found) >= 10]


def right_tokens(logprobs):
    return [(logprobs[d][places[d]] > math.log(0.5)).float() for d in chosen]


by_token, by_document = [], []
for _, logprobs, _ in looks:
    found = right_tokens(logprobs)
    by_token.append(torch.cat(found).mean().item())
    by_document.append(fmean(float(hit.all()) for hit in found))
n = round(fmean(len(places[d]) for d in chosen))
print(f"{len(chosen)} documents, each with about {n} tokens that have a right answer")
before, after = by_document[4], by_document[8]
print(f"after 100 steps: tokens over 65%: {by_token[4] > 0.65};", end=" ")
print(f"documents under 10%: {before < 0.1}")
print(f"after 200 steps: tokens over 85%: {by_token[8] > 0.85};", end=" ")
print(f"documents over 50%: {after > 0.5}")

# %% tags=["emergence-picture"]
axes = show.figure("Tokens improve smoothly, documents jump", "steps", "right")
x = [step for step, *_ in looks]
axes.plot(x, by_token, "o-", color=show.OURS, markersize=4)
axes.plot(x, by_document, "o-", color=show.WARM, markersize=4)
axes.plot(x, [p**n for p in by_token], "--", color=show.TRUTH)
axes.text(x[3], by_token[3] - 0.09, "tokens", color=show.OURS)
axes.text(x[7] - 6, by_document[7], "whole documents", color=show.WARM, ha="right")
axes.text(x[8] + 8, 0.42, f"(tokens right) to the power of {n}", color=show.TRUTH)
axes.set(xlim=(0, x[-1]), ylim=(-0.02, 1.05))
show.picture(axes)

# %% [markdown]
# *In the picture: counted by token the curve rises early and then slowly; counted by
# whole documents it stays at zero and then jumps; the dashed $p^n$ jumps with it.*
#
# Nothing in the model jumped while the documents did: the tokens went on improving
# slowly. The metric asks for everything at once. Real errors are not quite independent,
# so $p^n$ only comes near. A jump may be the metric (Schaeffer et al. 2023) or a new
# ability, such as the lookup of section 11. Plot both metrics before you decide.
#
# ## 13. Five percent noise is learned as five percent
#
# What happens if one example in twenty is wrong? The loss is lowest when the model's
# probabilities *are* those of the data. With a share $\epsilon$ of mistakes,
#
# $$q^* = \arg\min_q \; -(1 - \epsilon) \ln (1 - q) - \epsilon \ln q = \epsilon$$
#
# A tiny model reads a question (one of ten tokens) and its answer, which is a mistake
# in a given share of cases. We train three for each share.

# %% tags=["noise"]
BUG, QUESTIONS = 20, 10
shares = [0.05, 0.2, 0.4, 0.6]


def buggy_rows(share, dice, B=128):
    question = torch.randint(QUESTIONS, (B, 8), generator=dice)
    wrong = torch.rand(B, 8, generator=dice) < share
    answer = (question + QUESTIONS).masked_fill(wrong, BUG)
    return torch.stack([question, answer], dim=-1).flatten(1)


def learned_mistakes(share, seed):
    torch.manual_seed(seed)
    small = GPT(GPTConfig(BUG + 1, n_layer=1, n_head=1, n_embd=16, context=16))
    dice = torch.Generator().manual_seed(seed)

    def loss(step):
        row = buggy_rows(share, dice)
        targets = shift_targets(row)
        targets[:, 1::2] = IGNORE  # the questions are drawn freely
        return scored_loss(small, row, targets)

    minimise(small, loss, TrainConfig(120, **rates))
    with torch.no_grad():
        return small(buggy_rows(share, dice)).softmax(-1)[:, ::2]  # at each question


# %% tags=["noise-result"]
learned = {}
print("in the data   learned, within 3%     greedy makes the mistake   (three seeds)")
for share in shares:
    told = [learned_mistakes(share, seed) for seed in range(3)]
    learned[share] = [p[..., BUG].mean().item() for p in told]
    near = [abs(q - share) < 0.03 for q in learned[share]]
    greedy = [(p.argmax(-1) == BUG).float().mean().item() for p in told]
    print(f"{share:>11.0%}   {near!s:18}   {', '.join(f'{g:.0%}' for g in greedy)}")
q = round(fmean(learned[0.05]), 2)
print(f"\n20 choices in a row without a mistake: {(1 - q) ** 20:.0%} when sampled\n")
claim("A8", q)
claim("A9")

# %% [markdown]
# The mixture is learned as it is. Sampled, the model makes mistakes as often as its
# data; a text of twenty choices is then free of them only about a third of the time.
# Greedy decoding gives the *mode*, so it hides the mistakes as long as they are the
# minority, and shows nothing else as soon as they are the majority. Nothing gives a
# median: if half of the answers are 1 and half are 9, the model will not say 5. What
# noise costs in this experiment is not ability but nats: the floor rises to the entropy
# of the mixture.
#
# ## 14. The rivals: fill gaps, restore spans, find what is false
#
# Next-token prediction reads from left to right. Three other objectives hide something
# and see both sides of it.

# %% tags=["rivals"]
clean = experiment["text"]().tokenizer
row = torch.tensor([clean.encode("About Voro Jadark: Voro Jadark keeps a canary.")])
MASK, MARKS = 800, [801, 802, 803, 804]  # ids that no text has
names = {MASK: "[mask]"} | {mark: f"[{mark - MASK}]" for mark in MARKS}


def show_row(title, ids):
    spelled = [names[i] if i in names else clean.decode([i]).strip() for i in ids]
    print(f"{title:9} {' '.join(spelled)}")


dice = torch.Generator().manual_seed(5)
inputs, targets = mask_tokens(row, MASK, 800, rate=0.3, generator=dice)
filled = inputs.masked_fill(inputs == MASK, clean.encode(" Voro")[0])  # a bad generator
replaced = replaced_token_targets(row, filled)
spans, scored = span_rows(row, MARKS, Random(2), rate=0.5)
show_row("text", row[0].tolist())
show_row("masked", inputs[0].tolist())
show_row("  asks", row[0][targets[0] != IGNORE].tolist())
show_row("spans", spans[0][~scored[0]].tolist())
show_row("  asks", spans[0][scored[0]].tolist())
show_row("replaced", filled[0].tolist())
print(f"{'  asks':9} {' '.join('yes' if r else 'no' for r in replaced[0])}")

# %% [markdown]
# - **Masked tokens** (BERT): guess the hidden tokens. Of the chosen positions, 80% show
#   a mask, 10% another token, 10% the true one. Usually 15% of all are chosen.
# - **Span corruption** (T5): each missing span shrinks to one mark; a decoder writes
#   the marks and what belongs to them. Here one causal model reads and writes.
# - **Replaced tokens** (ELECTRA): a small masked model fills the gaps, and the model
#   says of *every* token whether it was replaced. A gap that is filled rightly counts
#   as not replaced.
#
# The objective is a choice of inputs, targets and scored positions. Which architecture
# fits follows from it: looking at both sides needs an encoder, writing needs a decoder.
#
# How many targets does one row give, and what does that buy? In a study (three seeds,
# committed in `studies/`) all four train the same trunk with the same number of
# floating-point operations. The generator counts, and positions that never reach the
# head cost no head. Losses cannot be compared: each is the surprise at something else.
# So all models are asked the same: which of all possible values is somebody's city,
# job, food or pet? Each answers by its own means.

# %% tags=["equal-compute"]
study = load_study("04_objectives")
arms = [arm for arm in study.settings if "half" not in arm]
chance = study.mean("causal", "chance")
print(f"{'objective':22} {'steps':>6} {'targets/row':>12} {'facts known':>16}")
for arm in arms:
    n, per_row = study.mean(arm, "steps"), study.mean(arm, "targets a row")
    known, spread = study.mean(arm, "chosen"), study.spread(arm, "chosen")
    print(f"{arm:22} {n:>6,.0f} {per_row:>12.0f} {known:>9.0%} ± {spread:.0%}")
print(f"{'guessing':22} {'':>6} {'':>12} {chance:>9.0%}")
flops = [study.mean(arm, "teraflops") for arm in arms]
print(f"\noperations differ by less than 1%: {max(flops) / min(flops) < 1.01}")
per_target = study.mean("masked", "targets a row") / study.mean(
    "causal", "targets a row"
)
claim("A3", per_target)

# %% tags=["equal-compute-picture"]
means = {arm: study.mean(arm, "chosen") for arm in reversed(arms)}
axes = show.figure(
    "With equal compute the causal model knows most", "facts known", "", height=3.4
)
axes.barh(list(means), list(means.values()), color=show.OURS, height=0.6)
for arm in means:
    found = study.values(arm, "chosen")
    axes.plot(found, [arm] * len(found), "o", color=show.RIVAL, markersize=4)
axes.axvline(chance, color=show.TRUTH, linestyle="--")
axes.text(chance + 0.01, len(means) - 0.5, "guessing", color=show.TRUTH)
axes.set(xlim=(0, 1.05), ylim=(-0.6, len(means) - 0.1))
show.picture(axes)

# %% [markdown]
# *In the picture: one bar for each objective, with a dot for each of three seeds; a
# dashed line shows guessing. The causal model is ahead of all others.*
#
# Within an objective the number of targets counts: the causal model and the detector
# both lose when only 15% of their positions are scored, the detector nearly all. How
# much of what they know above guessing is left?


# %% tags=["target-count"]
def kept(arm):
    thin = study.mean(f"{arm}, 15% scored", "chosen") - chance
    return thin / (study.mean(arm, "chosen") - chance)


print(f"causal model: {kept('causal'):.0%} is left; detector: {kept('replaced'):.0%}\n")
claim("A4", kept("replaced"))

# %% [markdown]
# (ELECTRA gained over masking, at a larger size. Here detection does not, so the gain
# is counted from guessing.)
#
# Between objectives, the count does not explain the order. The masked model has as many
# targets as the thinned causal one and knows less; the detector has more than both and
# knows less still. What else differs: gaps hide the very words that a fact hangs on, a
# detector gets one bit from each position, and a causal model is asked in the form in
# which it was trained. This study cannot tell these apart.
#
# It also cannot say what is best at another size or after longer training, and it uses
# one learning rate for all. For classifying text, encoders that were trained with masks
# or by detection did better at their size than causal models (Devlin et al. 2019, Clark
# et al. 2020). What decided for next-token prediction is above all that it can write.
#
# Is the file what this code does? The learner of section 7 is one of its runs (half of
# the compute, seed 0), made again just now:

# %% tags=["rerun"]
half = "causal, half the compute"
stated, spread = study.mean(half, "excess"), study.spread(half, "excess")
within = abs(last.total - stated) < 6 * spread  # three seeds say little of a spread
print(f"excess over the floor as in the study, within six spreads: {within}")
assert within

# %% [markdown]
# ## 15. Claims that no code of ours can decide
#
# Some claims are settled by reading a source, or by arithmetic.

# %% tags=["read-claims"]
claim("A5")
claim("A14")
print()
claim("A11", 15e12 * 4.4 / 1e15)
claim("A13")

# %% [markdown]
# ## What to remember
#
# 1. The loss is the mean of $-\ln p$ of the next token: one shift, padding left out,
#    $\ln V$ at the start. Perplexity is $e^L$; across tokenizers compare bits per byte.
# 2. One pass scores all prefixes. Training is parallel in $t$, writing is not.
# 3. The loss ends at a floor that no model can pass. Above it lie rules, which are
#    learned early, and facts, which are learned late and in the order of their
#    frequency.
# 4. A base model continues. It copies from its context and knows facts, but it does not
#    reply, and it is sure of things that nobody can know.
# 5. Data are learned as they are: 5% mistakes in, 5% mistakes out.

# %% [markdown]
# ## Common mistakes
#
# - Shifting twice (in the data *and* in the loss), or not at all.
# - Trusting `ignore_index=-100` without writing $-100$ into the labels.
# - Averaging the perplexities of documents, or means of unequal batches.
# - Comparing the loss per token of two tokenizers.
# - Calling a jump of exact match a new ability before looking at the tokens.
# - Taking confidence for knowledge: it is only as good as what the text asked about.

# %% [markdown]
# ## Exercises
#
# In `exercises/01_next_token_prediction.ipynb`, in this order: the loss; perplexity and
# bits per byte; a loss that shifts twice, to be repaired; hidden and replaced tokens;
# span corruption; the lowest loss of a noisy corpus; what the stages of training cost;
# an ability that emerges because of its metric.
#
# ## Interview questions
#
# Answered in `solutions/01_next_token_prediction.ipynb`: what next-token prediction is
# and why it suffices; how guessing words can give rise to arithmetic and code; where "a
# graduate who has read the library" breaks down; objective and architecture; why base
# models hallucinate; whether emergent abilities are real; what each stage costs.

# %% [markdown]
# ## References
#
# - Bengio et al. 2003, *A Neural Probabilistic Language Model*.
# - Devlin et al. 2019, *BERT*, arXiv:1810.04805. Raffel et al. 2020, *T5*,
#   arXiv:1910.10683. Clark et al. 2020, *ELECTRA*, arXiv:2003.10555.
# - Delétang et al. 2023, *Language Modeling Is Compression*, arXiv:2309.10668.
# - Olsson et al. 2022, *In-context Learning and Induction Heads*, arXiv:2209.11895.
# - Schaeffer et al. 2023, *Are Emergent Abilities of Large Language Models a Mirage?*,
#   arXiv:2304.15004.
# - Allen-Zhu and Li 2024,
#   [Physics of Language Models 3.3](https://arxiv.org/abs/2404.05405).
