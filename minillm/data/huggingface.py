"""The files from which Hugging Face transformers rebuilds our tokenizer.

Their format is JSON, and JSON holds text, not bytes. So each of the 256 bytes goes
under the name of a visible character: a byte that is visible in Latin-1 keeps its own
("a" is 97), and the other 68 take the characters from 256 upwards in order. The space
is the 33rd of them, hence the "Ġ" (256 + 32) before words in all such vocabularies.

    byte 32 -> chr(288) = "Ġ"        byte 10 -> chr(266) = "Ċ"

Source of the alphabet: the encoder of GPT-2 (Radford et al., 2019).
"""

from collections.abc import Mapping, Sequence
from functools import cache

from minillm.data.bpe import Pair, token_bytes
from minillm.data.pieces import PATTERN
from minillm.data.templates import ROLES, Template


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The visible character that stands for each byte.

    >>> [byte_alphabet()[b] for b in b"a b"]
    ['a', 'Ġ', 'b']
    """
    visible = {b for b in range(256) if chr(b).isprintable() and b != ord(" ")}
    stand_ins = iter(range(256, 512))
    return tuple(chr(b if b in visible else next(stand_ins)) for b in range(256))


def spell(token: bytes) -> str:
    """A token as Hugging Face writes it.

    >>> spell("né".encode())
    'nÃ©'
    """
    return "".join(byte_alphabet()[b] for b in token)


def tokenizer_json(merges: Sequence[Pair], special_tokens: Mapping[str, int]) -> dict:
    """The content of ``tokenizer.json``.

    Args:
        merges: pairs of ids in the order of learning.
        special_tokens: name to id.
    """
    tokens = [spell(token) for token in token_bytes(merges)]
    cut = {"type": "Split", "pattern": {"Regex": PATTERN}}
    cut |= {"behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    byte_level["trim_offsets"] = True
    model = {"type": "BPE", "vocab": {token: id_ for id_, token in enumerate(tokens)}}
    model["merges"] = [(tokens[left], tokens[right]) for left, right in merges]
    common = {"special": True, "normalized": False}
    common |= {"single_word": False, "lstrip": False, "rstrip": False}
    added = [common | {"id": i, "content": name} for name, i in special_tokens.items()]
    cuts = {"type": "Sequence", "pretokenizers": [cut, byte_level]}
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": cuts}
    return content | {"decoder": byte_level, "model": model}


def tokenizer_config(special_tokens: Mapping[str, int], eot: str, pad: str) -> dict:
    """The content of ``tokenizer_config.json``: which special token plays which part.

    There is no bos token, so nobody can add it twice, and nothing is tidied up when
    decoding, or the text would not come back as it was.
    """
    return {
        "eos_token": eot,
        "pad_token": pad,
        "additional_special_tokens": sorted(special_tokens.keys() - {eot, pad}),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def chat_template(template: Template) -> str:
    """The program in Jinja that ``apply_chat_template`` runs over the messages.

    Between ``generation`` and ``endgeneration`` stands what the assistant has to write;
    with ``return_assistant_tokens_mask=True`` it comes back as a mask.

    >>> from minillm.data.templates import CHATML
    >>> chat_template(CHATML)[-72:]
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\\\n' }}{% endif %}"
    """
    turns = "".join(
        f"{{% if message['role'] == {role!r} %}}{_turn(template, role)}{{% endif %}}"
        for role in ROLES
    )
    # A role without marks would be left out without a word.
    known = f"{{% if message['role'] not in {list(ROLES)} %}}"
    known += "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    opened = f"{{{{ {template.assistant.opening!r} }}}}"
    prompt = f"{{% if add_generation_prompt %}}{opened}{{% endif %}}"
    return f"{{% for message in messages %}}{known}{turns}{{% endfor %}}{prompt}"


def _turn(template: Template, role: str) -> str:
    """One message in Jinja; Python and Jinja write strings alike."""
    marks = template.marks(role)
    said = f"{{{{ message['content'] + {marks.closing!r} }}}}"
    if role == "assistant":
        said = f"{{% generation %}}{said}{{% endgeneration %}}"
    return f"{{{{ {marks.opening!r} }}}}{said}{{{{ {marks.after!r} }}}}"
