"""Chapter 01: span corruption, where the parts must be the text when put together."""

import torch

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees
from minillm.training.objectives import span_corruption


def texts(seed: int) -> dict:
    """Texts with spans in the middle, at both ends, side by side, and none."""
    rng = torch.Generator().manual_seed(seed)
    text = torch.randint(50, (12,), generator=rng)
    ids = [90, 91, 92, 93]
    return {
        "two spans": (text, [(1, 3), (6, 9)], ids),
        "spans at both ends": (text, [(0, 2), (10, 12)], ids),
        "spans side by side": (text, [(2, 5), (5, 7), (8, 10)], ids),
        "sentinels that count down": (text, [(3, 5), (7, 10)], [99, 98, 97]),
        "no span": (text, [], ids),
    }


def _cut(tokens, spans):
    """The pieces that stay, and the pieces that go."""
    stay, done = [], 0
    for start, end in spans:
        stay.append(tokens[done:start].tolist())
        done = end
    return [*stay, tokens[done:].tolist()], [tokens[a:b].tolist() for a, b in spans]


def _joined(pieces):
    return [token for piece in pieces for token in piece]


def _woven(stay, marks):
    """Pieces with a list of tokens between each two."""
    woven = list(stay[0])
    for mark, piece in zip(marks, stay[1:], strict=True):
        woven += mark + piece
    return woven


def no_last_sentinel(tokens, spans, sentinels):
    """The targets end without a sentinel, so the decoder never learns to stop. Add the
    next sentinel after the last span."""
    inputs, targets = span_corruption(tokens, spans, sentinels)
    return inputs, targets[:-1]


def one_sentinel_for_all(tokens, spans, sentinels):
    """All gaps look the same, so nobody can say which text belongs where. Each span has
    a sentinel of its own."""
    return span_corruption(tokens, spans, [sentinels[0]] * len(sentinels))


def gap_without_sentinel(tokens, spans, sentinels):
    """The inputs close up over the gaps, and the model cannot see where text is
    missing. Leave a sentinel for each span."""
    stay, _ = _cut(tokens, spans)
    return _joined(stay), span_corruption(tokens, spans, sentinels)[1]


def sentinel_for_each_token(tokens, spans, sentinels):
    """Each hidden token left a sentinel, which gives away how long the span is and
    makes the inputs longer. A span shrinks to a single one."""
    stay, gone = _cut(tokens, spans)
    marks = [[s] * len(g) for s, g in zip(sentinels, gone, strict=False)]
    return _woven(stay, marks), span_corruption(tokens, spans, sentinels)[1]


def targets_are_the_text(tokens, spans, sentinels):
    """The targets are the whole text, so most of the decoder's work is to copy. Ask
    only for what is hidden."""
    return span_corruption(tokens, spans, sentinels)[0], tokens


def targets_without_sentinels(tokens, spans, sentinels):
    """The targets are the hidden tokens in one row; where one span ends and the next
    begins is lost. Put its sentinel before each span."""
    _, gone = _cut(tokens, spans)
    return span_corruption(tokens, spans, sentinels)[0], _joined(gone)


def sentinel_after_its_span(tokens, spans, sentinels):
    """In the targets the sentinel follows its span; the decoder would have to write
    before it knows for which gap. It comes first."""
    inputs, _ = span_corruption(tokens, spans, sentinels)
    _, gone = _cut(tokens, spans)
    pairs = zip(sentinels, gone, strict=False)
    return inputs, [*_joined(g + [s] for s, g in pairs), sentinels[len(spans)]]


SPAN_CORRUPTION = Exercise(
    id="01.span_corruption",
    kind="I",
    points=3,
    level=2,
    minutes=20,
    task="Write span_corruption(tokens, spans, sentinels), which returns inputs and "
    "targets. A span is (start, end) without the end. In the inputs each span is one "
    "sentinel; the targets are sentinel, span, sentinel, span, ..., last sentinel.",
    solution={"span_corruption": span_corruption},
    check=agrees("span_corruption", texts, rtol=0),
    mutants={
        "span_corruption": (
            no_last_sentinel,
            one_sentinel_for_all,
            gap_without_sentinel,
            sentinel_for_each_token,
            targets_are_the_text,
            targets_without_sentinels,
            sentinel_after_its_span,
        )
    },
    hints=(
        "Could somebody who has only your inputs and targets write out the text again?",
        "Walk over spans and sentinels together, and remember where the last span "
        "ended. Each step adds to both lists.",
        "inputs += tokens[done:start] + [s]; targets += [s] + tokens[start:end]; "
        "done = end. After the loop the rest of the text, and one more sentinel.",
    ),
)
