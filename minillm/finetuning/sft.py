r"""Supervised fine-tuning: pre-training with another mask on other data.

.. math:: L = -\frac{1}{\sum m} \sum_t m_t \ln p(x_t \mid x_{<t}), \qquad
          m_t = 1 \text{ where the assistant speaks}

This is ``next_token_loss``, by the same trainer, with the same optimizers. Two things
differ from pre-training:

- *The data*: conversations in a template, instead of documents.
- *The mask*: prompts are read and not learned. They still shape every response, because
  attention sees them; the model is not taught to ask.

And one habit: small learning rates and few passes. What the model knows it learned from
far more text; fine-tuning is to bring it out, not to write over it.

The mean is over targets, of all rows and all accumulated batches together. Where it
also counts prompts, the learning rate shrinks with the part of the text that they are.

Source: Ouyang et al. 2022 (InstructGPT), section 3.5; Wei et al. 2022 (FLAN).
Differs from TRL: its SFTTrainer scores whole conversations unless it is told
``assistant_only_loss=True``, and prompts of pairs are left out.
"""

import math
from collections.abc import Iterable, Sequence

from minillm.data.chat import Encoded, encode_chat
from minillm.data.examples import Examples
from minillm.data.messages import Message, conversation
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_positive
from minillm.model import GPT
from minillm.training import MetricsLog, TrainConfig, Trainer


def sft_examples(
    tokenizer: Tokenizer,
    instructions: Iterable[tuple[str, str] | Sequence[Message]],
    template: Template = CHATML,
) -> list[Encoded]:
    """Encode what is to be imitated.

    Args:
        tokenizer: the model's own.
        instructions: pairs (prompt, response), or conversations.
        template: the marks.

    Raises:
        ValueError: as ``encode_chat``.

    >>> examples = sft_examples(Tokenizer(merges=()), [("hi", "yo")])
    >>> sum(examples[0].mask)   # y, o, <|im_end|>
    3
    """
    chats = [
        conversation(*item) if _is_pair(item) else item  # encode_chat checks the rest
        for item in instructions
    ]
    return [encode_chat(tokenizer, chat, template) for chat in chats]


def _is_pair(item) -> bool:
    """Two strings, and not one string of two letters."""
    two = not isinstance(item, str) and len(item) == 2
    return two and all(isinstance(part, str) for part in item)


def sft_config(examples: Examples, epochs: float = 2, **settings) -> TrainConfig:
    """So many passes over the examples, at a fraction of pre-training's rates.

    Args:
        examples: their number and B decide how many steps an epoch has.
        epochs: passes; more than a few learn the examples by heart.
        settings: of ``TrainConfig``, instead of those chosen here.

    Raises:
        ValueError: epochs that are not positive, a setting out of its range.

    >>> examples = Examples([Encoded([5, 6], [False, True])] * 100, T=8, B=16, pad=0)
    >>> sft_config(examples, epochs=2, lr=1e-4).steps   # 200 rows, 16 a step
    13
    """
    require_positive(epochs=epochs)
    require(math.isfinite(epochs), "epochs", epochs, "finite", "try 2")
    rows = examples.B * settings.get("accumulate", 1)
    steps = math.ceil(epochs * examples.rows_per_epoch / rows)
    chosen = {"steps": steps, "lr": 1e-3, "matrix_lr": 2e-3, "weight_decay": 0.0}
    return TrainConfig(**chosen | {"warmup": min(10, steps // 10)} | settings)


def finetune(
    model: GPT, examples: Examples, config: TrainConfig | None = None, **options
) -> MetricsLog:
    """Train a model on examples, in place: ``Trainer(...).fit()`` and no more.

    Args:
        model: a pre-trained one; it is changed.
        examples: batches whose mask is True where the assistant speaks.
        config: ``sft_config(examples)`` if not given.
        options: of ``Trainer``: folder, resume, world, on_step, progress.

    Raises:
        ValueError: examples longer than the model's context, or ids that it does not
            know.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16, context=8))
    >>> pair = [Encoded([5, 6, 7], [False, True, True])]
    >>> examples = Examples(pair, T=8, B=1, pad=0)
    >>> losses = finetune(model, examples, progress=False).column("loss")
    >>> losses[-1] < losses[0]
    True
    """
    longest = max(len(ids) for ids, _ in examples.encoded)
    need, remedy = f"at most {model.config.context}, the model's context", "cut them"
    fits = longest <= model.config.context
    require(fits, "length of the longest example", longest, need, remedy)
    largest = max(examples.pad, *(max(ids) for ids, _ in examples.encoded))
    need = f"below {model.config.vocab_size}, the model's vocabulary"
    remedy = "use the tokenizer that the model was trained with"
    require(largest < model.config.vocab_size, "largest id", largest, need, remedy)
    return Trainer(model, examples, config or sft_config(examples), **options).fit()
