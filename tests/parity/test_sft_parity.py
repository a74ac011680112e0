"""The labels of TRL's SFTTrainer and the loss of transformers, from our examples."""

import pytest
import torch
import torch.nn.functional as F

from minillm.data import Message, Tokenizer, conversation
from minillm.data.examples import Examples
from minillm.finetuning import respond, sft_examples
from minillm.model import GPT, GPTConfig, export_huggingface
from minillm.training import next_token_loss

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

TOKENIZER = Tokenizer.train("user assistant what pet does Mira keep? Gladly " * 9, 290)
CHATS = [
    conversation("what pet does Mira keep?", " Gladly: cat."),
    conversation("hi", "", system="be brief"),
    [*conversation("2+2", " 4"), *conversation("and 3+3?", " 6, as I think.")],
    [Message("system", ""), *conversation("é", "ü")],
]
CONFIG = GPTConfig(TOKENIZER.vocab_size, n_layer=2, n_head=2, n_embd=32, context=128)


def as_dicts(messages: list[Message]) -> list[dict]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same model in our hands and in theirs, both in float64."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ours = GPT(CONFIG)
    export_huggingface(ours, folder, TOKENIZER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return ours.double(), theirs.double(), folder


def trainer_of(both, tmp_path, rows: list[dict], **settings):
    tokenizer = transformers.AutoTokenizer.from_pretrained(both[2])
    args = trl.SFTConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, **settings
    )
    data = datasets.Dataset.from_list(rows)
    return trl.SFTTrainer(both[1], args, train_dataset=data, processing_class=tokenizer)


def test_ids_labels_loss_and_gradients_are_those_of_the_sft_trainer(both, tmp_path):
    rows = [{"messages": as_dicts(chat)} for chat in CHATS]
    trainer = trainer_of(both, tmp_path, rows, assistant_only_loss=True)
    encoded = sft_examples(TOKENIZER, CHATS)
    for row, (ids, mask) in zip(trainer.train_dataset, encoded, strict=True):
        assert row["input_ids"] == ids
        assert row["labels"] == [
            i if m else -100 for i, m in zip(ids, mask, strict=True)
        ]
    batch = trainer.data_collator(list(trainer.train_dataset))
    examples = Examples(encoded, CONFIG.context, len(CHATS), TOKENIZER.pad)
    ours, theirs, _ = both
    tokens, mask = examples[0]
    assert tokens.shape == batch["input_ids"].shape  # they are in another order
    assert mask.sum() == (batch["labels"] != -100).sum()
    loss = next_token_loss(ours(tokens), tokens, mask)
    loss.backward()
    out = theirs(**batch)
    # Their own mean is taken in float32, 24 bits; so it is taken here once more.
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-6)
    labels = batch["labels"][:, 1:].flatten()
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels)
    expected.backward()
    # Theirs has RMSNorm and RoPE in float32, whatever the weights are: 24 bits, of
    # which a mean over many tokens loses less than one gradient does.
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    named = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        other = named.get(f"model.{name}", named.get(name)).grad
        assert (p.grad - other).norm() < 1e-6 * other.norm(), name


def test_told_nothing_the_sft_trainer_scores_everything(both, tmp_path):
    """E4, and the docstring of ``sft``: the default is a whole conversation."""
    trainer = trainer_of(both, tmp_path, [{"messages": as_dicts(CHATS[0])}])
    (row,) = trainer.train_dataset
    assert row["labels"] == row["input_ids"]


def test_of_pairs_the_sft_trainer_also_scores_the_line_break_behind(both, tmp_path):
    """Its completion is all that follows the prompt; ours ends with the turn."""
    question, answer = as_dicts(CHATS[0])
    rows = [{"prompt": [question], "completion": [answer]}]
    (row,) = trainer_of(both, tmp_path, rows).train_dataset
    ((ids, mask),) = sft_examples(TOKENIZER, CHATS[:1])
    scored = [label != -100 for label in row["labels"]]
    assert row["input_ids"] == ids
    assert scored[:-1] == mask[:-1] and (scored[-1], mask[-1]) == (True, False)


def test_responses_are_those_of_generate_in_transformers(both):
    """Greedy, a batch of unequal prompts, padded on the left there too."""
    ours, theirs, folder = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    asked = [chat[:1] for chat in (CHATS[0], CHATS[2])]
    inputs = tokenizer.apply_chat_template(
        [as_dicts(messages) for messages in asked],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    stop = TOKENIZER.special_tokens["<|im_end|>"]
    made = theirs.generate(
        **inputs, max_new_tokens=8, do_sample=False, eos_token_id=stop
    )
    new = made[:, inputs["input_ids"].shape[1] :]
    said = [[id_ for id_ in row if id_ not in (stop, TOKENIZER.pad)] for row in new]
    expected = [TOKENIZER.decode([int(id_) for id_ in row]) for row in said]
    assert respond(ours, TOKENIZER, asked, max_new_tokens=8) == expected
