"""The automaton accepts what json.loads accepts, and no model writes anything else."""

import json
import math
import random

import pytest
import torch

from minillm.data import Tokenizer
from minillm.finetuning import json_automaton as automaton
from minillm.finetuning.constrained import JsonMask, generate_json
from minillm.finetuning.json_automaton import (
    ANYTHING,
    accepts,
    distance,
    read,
    schema,
    step,
)
from minillm.model import GPT, GREEDY, GPTConfig, Sampling

TEXT = json.dumps([{"naïve": "€ 12.50", "ok": True, "n": None}], ensure_ascii=False)
TOKENIZER = Tokenizer.train(f"{TEXT} 000 }}]}} \\u00ff 😀 " * 9, 290)
MASK = JsonMask(TOKENIZER, TOKENIZER.eot)
PET = {"name": str, "age": int, "home": {"warm": bool, "size": float}}


def model_of(seed: int, tokenizer: Tokenizer = TOKENIZER, scale: float = 1.0) -> GPT:
    """Untrained; with a scale above 1 it has strong and absurd opinions."""
    torch.manual_seed(seed)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 128}
    model = GPT(GPTConfig(tokenizer.vocab_size, **shape))
    with torch.no_grad():
        model.embed_tokens.weight.mul_(scale)
    return model.double()


# --- the automaton ------------------------------------------------------------------


def loads(text: bytes) -> bool:
    """What json.loads says, without its NaN and Infinity."""

    def refuse(word):
        raise ValueError(word)

    try:
        json.loads(text.decode(), parse_constant=refuse)
    except ValueError:  # of UTF-8 or of JSON
        return False
    return True


def some_value(dice: random.Random, depth: int = 0):
    kind = dice.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return dice.choice([True, False, None])
    if kind == 1:
        return dice.randint(-(10**6), 10**6)
    if kind == 2:
        return dice.uniform(-1, 1) * 10 ** dice.randint(-20, 20)
    if kind < 6:
        letters = 'ab"\\\n\t€😀/\x7f\u2028\ud7ff'
        return "".join(dice.choices(letters, k=dice.randrange(6)))
    inner = [some_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return inner if kind < 8 else {some_value(dice, 9).__str__(): v for v in inner}


def mutated(dice: random.Random, text: bytes) -> bytes:
    """Up to three bytes dropped, put in or replaced, mostly by those of JSON."""
    bytes_ = (
        b' \t\n\r{}[]",:0123456789-+.eEtrufalsn\\/b\x00\x1f\x7f\x80\xc3\xa9\xe2\xf0'
    )
    for _ in range(dice.randrange(4)):
        at, kind = dice.randrange(len(text) + 1), dice.randrange(3)
        new = bytes([dice.choice(bytes_)]) if kind else b""
        text = text[:at] + new + text[at + (kind != 1) :]
    return text


def test_it_accepts_what_json_loads_accepts_on_valid_and_on_damaged_texts():
    dice, seen = random.Random(0), [0, 0]
    for _ in range(6000):
        style = {"indent": dice.choice([None, 1]), "ensure_ascii": dice.random() < 0.5}
        text = mutated(dice, json.dumps(some_value(dice), **style).encode())
        assert accepts(text) == loads(text), text
        seen[loads(text)] += 1
    assert min(seen) > 1500


@pytest.mark.parametrize(
    "text",
    [
        *(b"01 1. .5 1e 1e+ -0 -01 +1 1e05 0e0 0.0 - 1E-7 -x".split()),
        *(b'"\\u12" "\\u12g4" "\\ud800" "\\x" tru true1'.split()),
        *(b"[1,] [,1] {,} {1:2} [1 [] {} [1}".split()),
        b'{"a":1,}',
        b'"\t"',
        b'" "x',
        b"",
        b" ",
        b" [ 1 , 2 ] \n",
        b"1 2",
        b"\xef\xbb\xbf1",
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xf4\x8f\xbf\xbf"',
        b'"\xe0\x9f\xbf"',
        b'"\xf0\x8f\xbf\xbf"',
        b'"\xf5\x80\x80\x80"',
        b'"\xe2\x82"',
    ],
)
def test_corners_of_numbers_escapes_commas_and_utf_8(text):
    assert accepts(text) == loads(text)


def test_every_code_point_is_a_character():
    every = [chr(c) for c in range(0x20, 0x110000, 257) if not 0xD800 <= c < 0xE000]
    assert accepts(json.dumps(every, ensure_ascii=False).encode())


def test_the_differences_from_json_loads_are_those_that_are_documented():
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        assert json.loads(word) is not None and not accepts(word)
    twice = b'{"a": 1, "a": 2}'
    assert json.loads(twice) == {"a": 2} and accepts(twice)
    deep = b"[" * 17 + b"]" * 17
    assert json.loads(deep) and not accepts(deep) and accepts(deep, depth=17)
    assert accepts(b"[[],[{}]]", depth=3) and not accepts(b"[[],[{}]]", depth=2)


def test_from_every_state_some_byte_leads_one_nearer_to_the_end():
    """The induction of the docstring, on all states that many texts pass through."""
    dice, seen = random.Random(1), {ANYTHING, schema(PET)}
    for _ in range(300):
        state = ANYTHING
        for byte in json.dumps(some_value(dice)).encode():
            state = step(state, byte)
            seen.add(state)
    for state in seen:
        reached = [step(state, byte) for byte in range(256)]
        nearest = min((distance(s) for s in reached if s is not None), default=0)
        assert distance(state) == 0 or nearest == distance(state) - 1


def test_every_symbol_has_rules_and_no_two_rules_read_the_same_byte():
    for symbol, rules in automaton.RULES.items():
        read_ = [byte for some in rules for byte in some]
        assert len(read_) == len(set(read_)), symbol
        named = {s for after in rules.values() for s in after if isinstance(s, str)}
        assert named <= set(automaton.RULES), symbol


# --- generation ---------------------------------------------------------------------


def texts_of(made, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    """What was written, having checked that each text was ended and not cut off."""
    rows = made.completions()
    assert all(row[-1] == tokenizer.eot for row in rows)
    return [tokenizer.decode_bytes(row[:-1]).decode() for row in rows]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_an_untrained_model_writes_parses(seed):
    sampling = [Sampling(), GREEDY, Sampling(top_k=3), Sampling(2.0, top_p=0.9)]
    model, dice = model_of(seed, scale=1 + 40 * (seed % 2)), torch.Generator()
    prompts = [[1 + i % 7] * (1 + i % 3) for i in range(16)]
    for room, how in zip([2, 3, 9, 40], sampling, strict=True):
        how = sampling[(seed + room) % 4]
        made = generate_json(model, prompts, room, MASK, ANYTHING, how, dice)
        for text in texts_of(made):
            json.loads(text)
        assert max(map(len, made.completions())) <= room


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_gives_its_keys_and_types_in_order(seed):
    model = model_of(seed)
    made = generate_json(model, [[1]] * 16, 70, MASK, schema(PET))
    for text in texts_of(made):
        pet = json.loads(text)
        assert list(pet) == list(PET) and list(pet["home"]) == list(PET["home"])
        kinds = [type(v) for v in (pet["name"], pet["age"], pet["home"]["warm"])]
        assert kinds == [str, int, bool]
        assert type(pet["home"]["size"]) in (int, float)


def test_of_the_same_seed_the_same_text_and_rows_do_not_hear_one_another():
    model = model_of(0, scale=30.0)
    prompts = [[5], [7, 8, 9], [6, 6]]
    together = generate_json(model, prompts, 20, MASK, sampling=GREEDY)
    alone = [generate_json(model, [p], 20, MASK, sampling=GREEDY) for p in prompts]
    assert together.completions() == [one.completions()[0] for one in alone]


def test_what_is_allowed_keeps_its_odds_at_each_step():
    """Drawn from p, renormalised over what is allowed: nothing else is changed."""
    model, state = model_of(1, scale=30.0), read(b'{"a')
    logits = model(torch.tensor([[5, 6]]))[0, -1]
    allowed = MASK.allowed(state, room=9)
    p = logits.softmax(-1) * allowed
    q = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    torch.testing.assert_close(q, p / p.sum(), rtol=1e-12, atol=0)
    for token in range(TOKENIZER.vocab_size):  # by brute force, token by token
        text = TOKENIZER.decode_bytes([token])
        ahead = read(text, state) if token < len(MASK.bytes) else None
        fits = ahead is not None and distance(ahead) <= 7
        assert allowed[token] == fits


def test_the_end_is_allowed_where_the_text_is_complete_and_only_there():
    for text, complete in [(b"[1", False), (b"[1]", True), (b"12", True), (b"1.", 0)]:
        allowed = MASK.allowed(read(text), room=9)
        assert allowed[TOKENIZER.eot] == bool(complete)
        specials = list(TOKENIZER.special_tokens.values())
        assert allowed[specials].sum() == int(complete)


def test_it_is_not_the_distribution_of_the_models_own_valid_texts():
    """All of a closed language, by enumeration: "true" and "false", byte by byte."""
    tokenizer = Tokenizer(merges=())
    model, mask = model_of(3, tokenizer, 60.0), JsonMask(tokenizer, tokenizer.eot)
    own, masked = {}, {}
    for text in (b"true", b"false"):
        ids, state = [5, *text, tokenizer.eot], schema(bool)
        logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
        own[text], masked[text] = 1.0, 1.0
        for at, token in enumerate(ids[1:]):
            p = logprobs[at].exp()
            allowed = mask.allowed(state, room=9)
            own[text] *= p[token].item()
            masked[text] *= (p[token] / p[allowed].sum()).item()
            state = mask.after(state, token)
    total = sum(own.values())
    assert sum(masked.values()) == pytest.approx(1, rel=1e-12)
    share = own[b"true"] / total
    assert abs(masked[b"true"] - share) > 0.1
    n, dice = 400, torch.Generator().manual_seed(0)
    made = generate_json(model, [[5]] * n, 9, mask, schema(bool), generator=dice)
    q = masked[b"true"]
    found = texts_of(made, tokenizer).count("true") / n
    assert abs(found - q) < 4 * math.sqrt(q * (1 - q) / n) + 1e-9


def test_the_training_mode_is_as_before():
    model = model_of(0).train()
    generate_json(model, [[5]], 5, MASK)
    assert model.training


BAD = {
    "no room": ({"max_new_tokens": 1}, "at least 2, the shortest text"),
    "no room for the schema": ({"start": schema(PET)}, "the shortest text"),
    "no whole room": ({"max_new_tokens": 9.5}, "int of at least 1"),
    "no prompt": ({"prompts": []}, "non-empty"),
    "an empty prompt": ({"prompts": [[5], []]}, "non-empty"),
    "an unknown id": ({"prompts": [[99999]]}, "ids in"),
    "no context": ({"max_new_tokens": 128}, "at most 128"),
    "another tokenizer": (
        {"mask": JsonMask(Tokenizer(merges=()), stop=256)},
        "model's tokenizer",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_written_is_refused(kind):
    change, words = BAD[kind]
    given = {"prompts": [[5]], "max_new_tokens": 9, "mask": MASK} | change
    with pytest.raises(ValueError, match=words):
        generate_json(model_of(0), **given)


def test_masks_and_schemas_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="special token"):
        JsonMask(TOKENIZER, stop=65)
    with pytest.raises(ValueError, match="depth must be"):
        JsonMask(TOKENIZER, TOKENIZER.eot, depth=0)
    with pytest.raises(ValueError, match="a type or a dict"):
        schema({"a": [int]})
    with pytest.raises(ValueError, match="a string"):
        schema({1: int})
