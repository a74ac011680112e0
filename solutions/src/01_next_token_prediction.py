# %% [markdown]
# # Exercises: what does next-token prediction learn?
#
# Eight exercises, easier ones first. Write your answer where a cell says `raise
# NotImplementedError`, run it, then run the check below it. A check tells what is right
# and what is wrong, and it knows the usual mistakes. It costs nothing to ask:
# `hint("01.next_token_loss", 1)` prints the first of three hints.
#
# The chapter is `notebooks/01_next_token_prediction.ipynb`.
#
# CPU 2 cores · ~15 s · < 1 GB

# %% tags=["setup"]
import math

import torch
import torch.nn.functional as F

from minillm.evaluation.asking import accuracy, ask, confidence
from minillm.evaluation.emergence import METRICS, Emergence, curve
from minillm.model import count_parameters
from minillm.school import zoo
from minillm.school.checks import check, hint, params
from minillm.school.studies import load_study
from minillm.world.questions import fact_question, skill_questions

torch.manual_seed(0)
IGNORE = -100  # F.cross_entropy leaves out positions with this label

# %% [markdown]
# ## 1. The loss (implement, about fifteen minutes)
#
# Write the mean of $-\ln p$ over the tokens that are targets.
#
# - `logits` (B, T, V): the scores at position $t$ are about the token at $t + 1$.
# - `tokens` (B, T): the rows that the model has read.
# - `mask` (B, T): True at tokens that are targets; `None` makes all of them targets.
#
# The first token of a row is predicted by nobody. Sum over the whole batch, then divide
# once by the number of targets.


# %% tags=["ex-next-token-loss"]
def next_token_loss(logits, tokens, mask=None):
    # --- solution
    if mask is None:
        mask = torch.ones_like(tokens, dtype=torch.bool)
    asked = mask[:, 1:].flatten()  # the mask belongs to the tokens, so it moves along
    scores = logits[:, :-1].flatten(0, 1)[asked]
    return F.cross_entropy(scores, tokens[:, 1:].flatten()[asked])
    # --- end of solution


# %%
hint("01.next_token_loss", 1)
check("01.next_token_loss", next_token_loss)

# %% [markdown]
# ## 2. Perplexity and bits per byte (implement, about ten minutes)
#
# `nats` is the *sum* of surprises of a text. For a corpus you get two lists, with one
# entry for each document.


# %% tags=["ex-perplexity"]
def perplexity(nats, n_tokens):
    # --- solution
    return math.exp(nats / n_tokens)
    # --- end of solution


def corpus_perplexity(nats, n_tokens):
    # --- solution
    return perplexity(sum(nats), sum(n_tokens))  # first the mean, then the exponential
    # --- end of solution


def bits_per_byte(nats, n_bytes):
    # --- solution
    return nats / math.log(2) / n_bytes
    # --- end of solution


# %%
check("01.perplexity", perplexity, corpus_perplexity, bits_per_byte)

# %% [markdown]
# ## 3. Emergence by metric (experiment, about ten minutes)
#
# Suppose that the accuracy on single tokens grows smoothly with the size of a model.
# Choose an experiment in which an ability seems to appear at once by one metric and not
# by another, on the same models. `sizes` are powers of ten of their parameters, 5 to 12
# of them, each in `6..12`; `length` is the number of tokens in an answer.

# %%
print("metrics:", ", ".join(METRICS))
print("a try:", [round(y, 2) for y in curve("exact match", 2, (6, 8, 10, 12))])


# %% tags=["ex-emergence"]
def emergence():
    # --- solution
    sizes = (6, 7, 8, 9, 10, 11, 12)
    return Emergence("exact match", "token accuracy", length=30, sizes=sizes)
    # --- end of solution


# %%
check("01.emergence", emergence, slow=True)

# %% [markdown]
# ## 4. A loss that shifts twice (debug, about ten minutes)
#
# A model that was trained with this code writes texts in which words are missing. Each
# of the two helpers looks right. Repair one of them.


# %% tags=["ex-double-shift"]
def make_labels(tokens, mask):
    """What each position should predict; -100 where nothing is asked."""
    labels = tokens.masked_fill(~mask, IGNORE)
    # --- solution: labels = labels.roll(-1, dims=1)
    # the loss below shifts, so nothing is shifted here
    # --- end of solution
    # --- solution: labels[:, -1] = IGNORE
    # --- end of solution
    return labels


def loss_of_labels(logits, labels):
    """Cross-entropy, shifted as many libraries do it."""
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


def labelled_loss(logits, tokens, mask):
    return loss_of_labels(logits, make_labels(tokens, mask))


# %%
check("01.double_shift", labelled_loss)

# %% [markdown]
# ## 5. The lowest loss of a noisy corpus (derive, about fifteen minutes)
#
# A text is fully predictable. But each token was replaced, with probability `noise`, by
# a draw from all `vocab_size` tokens, the right one included. Which loss, in nats per
# token, can no model pass? When you are done: what does your formula say for a noise of
# one, and which number of the chapter is that?

# %%
print("for instance:", params("01.noisy_corpus"))


# %% tags=["ex-noisy-corpus"]
def noisy_corpus(params):
    noise, V = params["noise"], params["vocab_size"]
    # --- solution
    wrong = noise / V  # for each wrong token; noise may also draw the right one
    right = 1 - noise + wrong
    return -right * math.log(right) - (V - 1) * wrong * math.log(wrong)
    # --- end of solution


# %%
check("01.noisy_corpus", noisy_corpus)

# %% tags=["solution", "noise-of-one"]
all_noise = noisy_corpus({"noise": 1.0, "vocab_size": 1024})
print(f"noise of one: {all_noise:.2f} nats; ln V = {math.log(1024):.2f}")

# %% [markdown]
# ## 6. What the stages cost (derive, about fifteen minutes)
#
# Dollars of pre-training, fine-tuning (SFT) and preference training (DPO: one pass over
# the pairs, each of two sequences). Training takes six operations for each parameter
# and token, two of them in the forward pass. DPO also asks a frozen copy, forward only.

# %%
for name, value in params("01.stage_costs").items():
    print(f"{name:20} {value:,}")


# %% tags=["ex-stage-costs"]
def stage_costs(params):
    # --- solution
    length = params["tokens_per_example"]
    examples = params["sft_examples"] * params["sft_epochs"]
    flops = {
        "pretraining": 6 * params["pretraining_tokens"],
        "sft": 6 * examples * length,
        "dpo": (6 + 2) * 2 * params["pairs"] * length,
    }  # for each parameter
    speed = params["flops_per_second"] * params["utilisation"]
    price = params["n_params"] / speed / 3600 * params["dollars_per_hour"]
    return {stage: n * price for stage, n in flops.items()}
    # --- end of solution


# %%
check("01.stage_costs", stage_costs)

# %% [markdown]
# ## 7. Hidden and replaced tokens (implement, about twenty minutes)
#
# `hide_tokens` returns inputs and targets of masked language modelling. All draws are
# given: where `chosen` is True, the input is `mask_id` where `fate < 0.8`, the token in
# `others` where `0.8 <= fate < 0.9`, and else the true token. Targets are $-100$ where
# nothing was chosen.
#
# `replaced_token_loss` is ELECTRA's loss: the mean binary cross-entropy over all real
# positions (`mask`); `scores` are logits of "this token was replaced".


# %% tags=["ex-hidden-tokens"]
def hide_tokens(tokens, chosen, fate, others, mask_id):
    # --- solution
    inputs = tokens.masked_fill(chosen & (fate < 0.8), mask_id)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, inputs)
    return inputs, tokens.masked_fill(~chosen, IGNORE)
    # --- end of solution


def replaced_token_loss(scores, tokens, corrupted, mask):
    # --- solution
    replaced = (tokens != corrupted)[mask]  # a gap that was filled rightly is not
    return F.binary_cross_entropy_with_logits(scores[mask], replaced.to(scores.dtype))
    # --- end of solution


# %%
check("01.hidden_tokens", hide_tokens, replaced_token_loss)

# %% [markdown]
# ## 8. Span corruption (implement, about twenty minutes)
#
# `spans` are `(start, end)` pairs without the end, in order. In the inputs each span is
# one sentinel; the targets are: sentinel, its tokens, next sentinel, its tokens, and so
# on, and one more sentinel to say that nothing follows. Both are tensors.


# %% tags=["ex-span-corruption"]
def span_corruption(tokens, spans, sentinels):
    # --- solution
    inputs, targets, done = [], [], 0
    for sentinel, (start, end) in zip(sentinels, spans, strict=False):
        inputs += [*tokens[done:start].tolist(), sentinel]
        targets += [sentinel, *tokens[start:end].tolist()]
        done = end
    inputs += tokens[done:].tolist()
    targets += [sentinels[len(spans)]]
    return tokens.new_tensor(inputs), tokens.new_tensor(targets)
    # --- end of solution


# %%
check("01.span_corruption", span_corruption)

# %% [markdown]
# # Interview questions
#
# Try each for half a minute, aloud, before you read the answer. Each answer has five
# parts: what to say in half a minute; what is behind it; a number that was measured
# here; the answer that is often given and wrong; and how you would test it.

# %% tags=["solution", "numbers"]
study, base = load_study("04_objectives"), zoo.load("base")
lore = base.world.lore
known = {arm: study.mean(arm, "chosen") for arm in study.settings}
for arm, share in known.items():
    print(f"{arm:26} {share:>4.0%} of the facts known")
print(f"{'guessing':26} {study.mean('causal', 'chance'):>4.0%}")
excess = base.known(300).excess(base.model)
n = count_parameters(base.model.config)["total"]
print(f"the base model: {n:,} parameters, a floor of {excess.floor:.2f} nats a token")
print(f"its excess over the floor: under 0.1 nats: {excess.total < 0.1}")

# %% tags=["solution", "fresh-letters"]
tasks = [q for q in skill_questions(lore, 800, "chapter 1") if q.kind == "task"]
for name in ("copy", "upper", "last"):
    fresh = [q for q in tasks if q.prompt.startswith(f"Task: {name} 2")]
    share = accuracy(ask(base.model, base.tokenizer, fresh, 12))
    print(f"{name} of two letters drawn anew: over 90% right: {share > 0.9}")

# %% tags=["solution", "prior"]
asked = [fact_question(lore, s, "city") for s in lore.strangers[:60]]
sure = confidence(ask(base.model, base.tokenizer, asked, 12))
print(f"where people live who do not exist: over 40% sure: {sure > 0.4}")
print(f"what a guess deserves: {1 / len(lore.cities):.0%}")

# %% tags=["solution", "twenty-choices"]
print(f"mistakes in 5% of the data: twenty choices without one: {0.95**20:.0%}")

# %% tags=["solution", "bill"]
bill = stage_costs(params("01.stage_costs"))
share = bill["pretraining"] / sum(bill.values())
print(f"pre-training is over 99% of the bill: {share > 0.99}")
print(f"15 trillion tokens of 4.4 bytes: {15e12 * 4.4 / 1e12:.0f} terabytes")

# %% [markdown]
# ## A. What is next-token prediction?
#
# *What is the objective, and why is it enough to learn so much of language?*

# %% [markdown] tags=["answer-why-next-token"]
# **In half a minute.** The model reads a text from left to right and gives every
# possible next token a probability. It is trained to make the token that really follows
# more probable. The labels are the text itself, so all text is training data. To
# predict well, a model has to use whatever helps: grammar, facts, what was said before,
# simple reckoning. Nothing else is asked for, but all of this lowers the loss.
#
# **Behind it.** The loss is $-\frac{1}{N}\sum_t \ln p(x_{t+1} \mid x_{\le t})$. By the
# chain rule its sum is $-\ln p(text)$, so to predict tokens is to model whole texts,
# and to compress them. The mean loss is the entropy of the text plus a divergence,
# $H(P) + KL(P \,\|\, Q)$. Only the second part can be learned, and it is zero only if
# the model has the right probability everywhere. One pass scores all prefixes, because
# no position sees what follows it.

# %% [markdown] tags=["answer-why-next-token"]
# **Measured here.** In TinyWorld the floor $H(P)$ is known. In the chapter's section 7
# the excess over it falls in an order: odds and rules first, facts last. The base model
# ends less than 0.1 nats above its floor (cell `numbers`).
#
# **Often said, and wrong.** "It is sufficient." It teaches what is in the text and
# helps to predict it. It does not teach to be helpful, to say "I do not know", or what
# no text shows. And not every language model uses it: T5, BERT and diffusion models do
# not.
#
# **How to test it.** Take a language whose truth is known, compare the loss with the
# floor, and split the difference by kind of token. Take away one kind of text, and see
# which ability goes.

# %% [markdown]
# ## B. How can guessing words lead to code or mathematics?
#
# *The objective is just "guess the next word". How can it give rise to coding or
# mathematics, and which hidden assumptions does this rest on?*

# %% [markdown] tags=["answer-guessing-words"]
# **In half a minute.** Because some next words cannot be guessed without doing the
# work. After `Compute 17+15=` only one continuation has a low loss. If the text holds
# many such places, the cheapest way to lower the loss is to compute. The assumptions:
# the text shows the work often enough, the model is large enough to hold a method,
# training finds it, and the method carries over to cases that were not in the text.
#
# **Behind it.** A model can lower the loss by a table or by a rule. A table needs an
# entry for each case; a rule is shorter but must be found. Which one wins depends on
# how many different cases there are, and how often each is seen. A token also has only
# a fixed amount of computation, so problems with many steps need the steps written out
# as tokens.

# %% [markdown] tags=["answer-guessing-words"]
# **Measured here.** In the chapter's section 11 a model with about a hundred thousand
# weights learns to look up a pair in its context, with values drawn anew for each row,
# so that no table could help. The base model copies letters that were drawn anew, and
# writes them as capitals (cell `fresh-letters`).
#
# **Often said, and wrong.** "It only repeats what it has read", and also "with scale it
# can do anything". The first is refuted by one task with fresh values; the second has
# the assumptions above, which fail one by one.
#
# **How to test it.** Ask for cases that cannot have been in the text, and that differ
# from those in it in one known way: longer, other names, other order.

# %% [markdown]
# ## C. A graduate who has read the whole library
#
# *"The model is a new graduate who has read the entire library." Where does this
# picture break, and what wrong decisions might it lead to?*

# %% [markdown] tags=["answer-library"]
# **In half a minute.** A graduate knows what he has read, where, and what he has not
# read. A base model has none of the three. It keeps what was repeated often, cannot say
# where something stood, and answers about things that do not exist in the same tone. It
# also does not want to help: it continues. Wrong decisions that follow: no retrieval,
# because "it has read everything"; trust in its tone; asking it for sources.
#
# **Behind it.** Training minimises a mean over tokens, so what is rare weighs little: a
# fact is learned in the order of how often it is stated. A graduate learns from one
# clear page; a model needs many statements of the same fact, and in several forms.

# %% [markdown] tags=["answer-library"]
# **Measured here.** In the chapter's section 10 the base model is right and sure about
# the most mentioned people, less about the others, and still more than 40% sure of
# people who do not exist, where a guess would deserve at most a few percent.
#
# **Often said, and wrong.** "Then it is a parrot." Copying, lookup in the context and
# rules that carry over are measurable, and no parrot has them.
#
# **How to test it.** Ask about frequent, rare and invented subjects in the same words,
# and compare how sure the model is with how often it is right.

# %% [markdown]
# ## D. Objective and architecture
#
# *Causal, masked, span corruption, replaced tokens: which objective belongs to which
# architecture, and why do most large models use the causal one?*

# %% [markdown] tags=["answer-objective-architecture"]
# **In half a minute.** An objective says what is hidden and what is asked for.
# Next-token prediction goes with a decoder, where a position sees only what stands
# before it. Masked and replaced tokens go with an encoder, which sees both sides and
# cannot write. Span corruption goes with an encoder and a decoder, or one decoder that
# does both. Causal models won because every position is a target, the same model
# writes, the keys and values of the past can be kept, and every task can be put as a
# continuation.
#
# **Behind it.** With rows of $T$ tokens: $T-1$ targets for the causal model, $0.15\,T$
# for masking, $0.15\,T$ plus the marks for spans, $T$ for replaced tokens, but each of
# these is one bit and not one of $V$.

# %% [markdown] tags=["answer-objective-architecture"]
# **Measured here.** With equal operations on small models the causal one knew 100% of
# the facts, the masked one 55%, the detector of replaced tokens 29% and the restorer of
# spans 9%, where guessing gives 6% (cell `numbers`). Scored on 15% of the positions,
# the causal model still knew 83%; the detector fell to 8%.
#
# **Often said, and wrong.** "Masked models are more sample-efficient, because they make
# several predictions for each sequence." A causal model makes one at nearly every
# position. And "detection is better because it is harder": it is a choice between two;
# what helped was to score every position. Our ranking is no law either: one size,
# little training, one learning rate for all.
#
# **How to test it.** Fix the operations and the text, count the targets, thin them out
# within each objective, and ask all models for the same facts, each in its own form.

# %% [markdown]
# ## E. Why is a base model not an assistant?
#
# *What happens when you ask a base model something, and what does fine-tuning change?*

# %% [markdown] tags=["answer-base-not-assistant"]
# **In half a minute.** A base model treats your words as the beginning of a document
# and goes on with it. If your words look like a quiz, the answer may follow; if they
# look like a list of questions, more questions may follow. Fine-tuning on conversations
# changes which kind of document it believes to be in: one in which an assistant
# replies. It teaches a form, and mostly not new knowledge.
#
# **Behind it.** Both stages minimise the same loss, $-\ln p(x_{t+1} \mid x_{\le t})$.
# In fine-tuning the data are conversations and the mask leaves out what the user says.

# %% [markdown] tags=["answer-base-not-assistant"]
# **Measured here.** In the chapter's section 9 hardly any of the base model's
# continuations of a user's question is a reply, while most hold the right fact: it goes
# on as the dialogues of its documents do. Fine-tuning changed nearly all weights.
#
# **Often said, and wrong.** "Instructions are followed as an emergent ability of
# scale." Large base models can be prompted into it with examples; doing it without
# needs training on instructions. And the base is not frozen, unless adapters are used.
#
# **How to test it.** Give the same facts in the form of the documents and in a user's
# form, and count right answers and right replies separately.

# %% [markdown]
# ## F. Why do models hallucinate?
#
# *Explain hallucination from the training objective.*

# %% [markdown] tags=["answer-hallucination"]
# **In half a minute.** The objective rewards the probable continuation, and nothing in
# it marks what is true or known. If texts answer every question that they ask, then an
# answer follows every question. For a subject that the model does not know, the best
# guess by the text is some value that such subjects have, and that is what it says,
# fluently.
#
# **Behind it.** The training loss is a mean over contexts of the training text. A
# context about an invented person never occurs in it, so the model's confidence there
# is free: no gradient ever pushed it down. An honest model would give the prior of the
# values, $1/K$ for each of $K$ equally likely ones.

# %% [markdown] tags=["answer-hallucination"]
# **Measured here.** Asked about people who do not exist, the base model is more than
# 40% sure where they live, and a guess deserves 2% (cell `prior`). About people who
# exist and are never mentioned it is as sure.
#
# **Often said, and wrong.** "Lower the temperature." Greedy decoding returns the most
# probable invention. "It is lying": it has no second opinion that it hides. Also wrong
# is "confidence is worthless": among people in the text it did tell the well known from
# the rare.
#
# **How to test it.** Ask about subjects that you know not to exist, and plot confidence
# against the share of right answers. Then train with examples of saying "I do not
# know", and see whether refusals also hit the rare subjects that it did know.

# %% [markdown]
# ## G. Are emergent abilities real?
#
# *Some tables list the size at which each ability appears. What do you make of them?*

# %% [markdown] tags=["answer-emergence"]
# **In half a minute.** Two things are mixed. One is the metric: if an answer of $n$
# tokens counts only when all are right, a smooth improvement of each token looks like a
# jump. The other is real: some methods, such as looking up in the context, are found at
# a moment of training. Thresholds in parameters are no constants of nature; they depend
# on data, training time, task and metric.
#
# **Behind it.** If errors were independent, exact match would be $p^n$. For $n = 30$
# this is near zero until $p$ passes $0.9$. The score can be made smooth or sudden by
# choosing the metric on the same models.

# %% [markdown] tags=["answer-emergence"]
# **Measured here.** On the same checkpoints, tokens came right steadily while whole
# documents stayed at nothing and then jumped (the chapter's section 12). Learning from
# the context, listed at ten billion parameters in one guide, was done by a model with
# about a hundred thousand (section 11).
#
# **Often said, and wrong.** "So emergence is an illusion." In section 12 the errors
# were not independent, and in section 11 the accuracy itself went from chance to nearly
# perfect.
#
# **How to test it.** Report a continuous metric next to exact match, with many model
# sizes or checkpoints, and look whether both jump at the same place.

# %% [markdown]
# ## H. Can a model be better than its data?
#
# *Can the ability of a base model exceed its training data? Why do people need so much
# less text?*

# %% [markdown] tags=["answer-better-than-data"]
# **In half a minute.** In parts, yes. A model can average out independent mistakes when
# it answers greedily, combine facts that no single text combines, and apply a rule to
# new cases. It cannot know what no text shows or implies. Sampled as it is, it makes
# mistakes as often as its data. People need less text because they act, see results,
# are corrected, and come with a body and a brain that are no blank page.
#
# **Behind it.** The best fit to data with a share $\epsilon$ of independent mistakes
# gives mistakes the probability $\epsilon$. Greedy decoding takes the mode, which is
# the truth as long as $\epsilon < 1/2$ and the mistakes are independent. If everybody
# makes the same mistake, the mode is the mistake.

# %% [markdown] tags=["answer-better-than-data"]
# **Measured here.** With mistakes in 5% of the data a tiny model learns 5%; sampled, a
# text of twenty choices is free of them in 36% of cases; greedily, always (the
# chapter's section 13, and cell `twenty-choices`).
#
# **Often said, and wrong.** "It learns the median", or "rare errors are outvoted":
# sampling shows them as often as the data. "It can never be better than its teachers":
# in the mode it can, and with a verifier (chapter 15) much more.
#
# **How to test it.** Plant mistakes at a known rate, once independent and once
# systematic, and compare sampled and greedy answers.

# %% [markdown]
# ## I. The stages compared
#
# *Compare pre-training, fine-tuning and preference training by data, tokens and cost.*

# %% [markdown] tags=["answer-stages"]
# **In half a minute.** Pre-training reads trillions of tokens of text once and pays
# nearly the whole bill. Fine-tuning reads thousands to a million conversations for a
# few epochs; preference training reads as many pairs of answers. Both cost less than a
# hundredth. What they need is not computation but good data, and many rounds of trying.
#
# **Behind it.** Training costs about $6 N D$ operations for $N$ parameters and $D$
# tokens: two for the forward pass and four for the backward one. DPO adds $2 N D$ for a
# frozen reference and reads two answers for each pair.

# %% [markdown] tags=["answer-stages"]
# **Measured here.** With the numbers of exercise 6, pre-training is over 99% of the
# bill (cell `bill`). This is counted, not measured: no stage of that size was run.
#
# **Often said, and wrong.** "Fine-tuning is cheap, so it does not matter." It decides
# whether the model is of any use. "Petabytes of text": 15 trillion tokens are about 66
# terabytes (cell `bill`); petabytes are what a raw crawl weighs.
#
# **How to test it.** Count tokens in each stage of a report, multiply by $6N$, divide
# by what a GPU does in an hour at the utilisation that was reached, and compare with
# the published GPU hours.
