"""Packing as TRL does it, and the loss of transformers on what was packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import Tokenizer
from minillm.data.chat import Encoded
from minillm.finetuning.packing import (
    pack,
    packed_logits,
    packed_positions,
    plan_rows,
)
from minillm.model import GPT, GPTConfig, export_huggingface
from minillm.training import next_token_loss

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")

from trl.data_utils import _pack_bfd  # noqa: E402
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: E402

TOKENIZER = Tokenizer(merges=())
CONFIG = GPTConfig(
    TOKENIZER.vocab_size, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, context=64
)
LENGTHS = (3, 8, 2, 5, 12, 7, 6)
T = 16


def examples() -> list[Encoded]:
    """Ids that occur once, so that an example is found by its first token."""
    ids = iter(range(1, 200))
    rows = [[next(ids) for _ in range(n)] for n in LENGTHS]
    return [Encoded(row, [i >= len(row) // 2 for i in range(len(row))]) for row in rows]


def labels_of(example: Encoded) -> list[int]:
    return [i if m else -100 for i, m in zip(*example, strict=True)]


def their_rows(strategy: str = "bfd", T: int = T) -> list[dict]:
    rows = [{"input_ids": e.ids, "labels": labels_of(e)} for e in examples()]
    data = datasets.Dataset.from_list(rows)
    return list(trl.pack_dataset(data, T, strategy))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same model in our hands and in theirs, both in float64."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ours = GPT(CONFIG)
    with torch.no_grad():
        ours.embed_tokens.weight.mul_(20)
    export_huggingface(ours, folder, TOKENIZER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return ours.double(), theirs.double()


# --- which examples share a row -----------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_rows_are_as_many_and_as_full_as_those_of_best_fit_decreasing(lengths):
    """Which of two rows with equal room is taken is another matter."""
    table = pa.table({"input_ids": [[0] * n for n in lengths]})
    theirs = _pack_bfd(table, 16).column("seq_lengths").to_pylist()
    ours = [[lengths[i] for i in row] for row in plan_rows(lengths, 16)]
    assert sorted(map(sum, theirs)) == sorted(map(sum, ours))


def test_tokens_and_labels_of_a_row_are_theirs_up_to_the_order_of_rows():
    packed = pack(examples(), T)
    ours = []
    for tokens, mask, document in zip(*packed, strict=True):
        real = document >= 0
        labels = tokens.where(mask, -100)[real].tolist()
        ours.append((tokens[real].tolist(), labels))
    theirs = [(row["input_ids"], row["labels"]) for row in their_rows()]
    assert sorted(ids for ids, _ in ours) == sorted(ids for ids, _ in theirs)
    assert sorted(labels for _, labels in ours) == sorted(row for _, row in theirs)


def test_what_is_too_long_is_cut_there_and_refused_here():
    rows = their_rows(T=10)
    assert sum(len(row["input_ids"]) for row in rows) == sum(LENGTHS) - 2
    split = their_rows("bfd_split", T=10)
    assert sum(len(row["input_ids"]) for row in split) == sum(LENGTHS)
    with pytest.raises(ValueError, match=r"in 1\.\.10"):
        pack(examples(), 10)


# --- what the model sees ------------------------------------------------------------


def collated(rows: list[dict]) -> dict:
    """All rows in one, without padding, as for flash attention."""
    return DataCollatorForLanguageModeling(0, padding_free=True)(rows)


def test_positions_and_targets_are_those_of_the_collator_without_padding():
    batch = collated(their_rows())
    lengths = torch.tensor([n for row in their_rows() for n in row["seq_lengths"]])
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
    assert packed_positions(document).equal(batch["position_ids"])
    assert document.int().equal(batch["seq_idx"])
    targets = sum(sum(e.mask[1:]) for e in examples())
    assert (batch["labels"] != -100).sum() == targets == pack(examples(), T).mask.sum()


def test_logits_loss_and_gradients_are_theirs_on_what_trl_packed(both):
    ours, theirs = both
    batch = collated(their_rows())
    kept = {k: batch[k] for k in ("input_ids", "position_ids", "labels")}
    out = theirs(**kept, use_cache=False)
    packed = pack(examples(), T)
    logits = packed_logits(ours, packed.tokens, packed.document)
    flat = zip(packed.tokens.flatten().tolist(), logits.flatten(0, 1), strict=True)
    found = dict(flat)
    mine = torch.stack([found[t] for t in batch["input_ids"][0].tolist()])
    # Their RMSNorm and RoPE are in float32 whatever the weights are.
    torch.testing.assert_close(out.logits[0], mine, rtol=1e-6, atol=1e-5)
    # With a cache, as by default, they do not look for borders in the positions.
    cached = theirs(**kept).logits[0]
    assert (cached - mine).abs().max() > 1e-2
    loss = next_token_loss(logits, packed.tokens, packed.mask)
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-6)
    loss.backward()
    out.loss.backward()
    named = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        other = named.get(f"model.{name}", named.get(name)).grad
        assert (p.grad - other).norm() < 1e-5 * other.norm(), name


def test_wrapped_rows_cut_examples_and_let_neighbours_be_heard(both):
    """TRL's other strategy: full rows, no borders, no positions that begin again."""
    rows = their_rows("wrapped")
    stream = [i for e in examples() for i in e.ids]
    assert [i for row in rows for i in row["input_ids"]] == stream
    assert [len(row["input_ids"]) for row in rows] == [16, 16, 11]
    assert "seq_lengths" not in rows[0]
    batch = collated(rows[:1])
    assert batch["position_ids"].tolist() == [list(range(16))]
    ours, theirs = both
    with torch.no_grad():
        heard = theirs(batch["input_ids"]).logits[0]
        alone = ours(torch.tensor([examples()[1].ids]))[0]
    assert (heard[3:11] - alone).abs().max() > 1e-2


# --- the loss -----------------------------------------------------------------------


def test_accumulated_losses_are_theirs_if_they_are_told_how_many_targets_there_are(
    both,
):
    """Micro-batches of unequal targets; the mean of their means is another loss."""
    ours, theirs = both
    torch.manual_seed(0)
    tokens, mask = torch.randint(0, 260, (3, 20)), torch.zeros(3, 20).bool()
    for row, targets in enumerate((3, 11, 17)):
        mask[row, -targets:] = True
    labels, n = tokens.where(mask, -100), mask.sum()
    whole = next_token_loss(ours(tokens), tokens, mask)
    parts = [
        theirs(tokens[i, None], labels=labels[i, None], num_items_in_batch=n).loss
        for i in range(3)
    ]
    # Theirs is computed in float32, 24 bits.
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-6)
    means = [
        theirs(tokens[i, None], labels=labels[i, None]).loss.item() for i in range(3)
    ]
    assert abs(whole.item() - sum(means) / 3) > 1e-3
    wanted = torch.autograd.grad(sum(parts), theirs.model.embed_tokens.weight)[0]
    found = torch.autograd.grad(whole, ours.embed_tokens.weight)[0]
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_where_nothing_is_a_target_theirs_is_nan_and_ours_is_refused(both):
    ours, theirs = both
    tokens = torch.randint(0, 260, (1, 9))
    assert theirs(tokens, labels=torch.full_like(tokens, -100)).loss.isnan()
    with pytest.raises(ValueError, match="targets must be at least 1"):
        next_token_loss(ours(tokens), tokens, torch.zeros(1, 9).bool())
    with pytest.raises(ValueError, match="targets must be at least 1"):
        pack([Encoded([1, 2], [False, False])], T=4)
