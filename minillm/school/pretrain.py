"""``minillm train``: pre-training for a number of steps, alone or under ``torchrun``.

    minillm train --data book.txt --steps 2000 --out runs/book
    torchrun --nproc-per-node 2 -m minillm train --steps 2000 --out runs/two

Every process runs this same function. The first one learns the tokenizer and writes
files; the others wait for it, and all of them train on their share of each batch.
"""

from pathlib import Path

import torch
import torch.distributed as dist

from minillm.data import Tokenizer, load_corpus, train_heldout_split
from minillm.data.batches import Windows
from minillm.evaluation import score_stream
from minillm.model import GPT
from minillm.school.options import TourOptions, model_config
from minillm.school.text_tour import join
from minillm.training import MetricsLog, TrainConfig, Trainer, World, join_world


def pretrain_steps(
    *,
    data: str,
    out: str | Path,
    steps: int,
    size: str,
    vocab_size: int,
    context: int,
    batch: int,
    device: str,
    seed: int,
    **training,
) -> MetricsLog:
    """Train a new model on a corpus, or go on with the run in ``out``.

    Args:
        data, size, vocab_size, context, batch, seed: as in ``TourOptions``.
        out: folder of the run.
        steps: optimizer steps.
        device: ``"cpu"`` or ``"cuda"``.
        training: further settings of ``TrainConfig``.

    Raises:
        ValueError, FileNotFoundError: from the doors of corpus, model and trainer.
    """
    config = TrainConfig(steps=steps, warmup=min(20, steps // 5), **training)
    options = TourOptions(
        data, size=size, vocab_size=vocab_size, context=context, batch=batch, seed=seed
    )
    world = join_world(device)
    documents = load_corpus(data, progress=world.rank == 0).documents
    train, heldout = train_heldout_split(documents, 0.08, seed)
    tokenizer = shared_tokenizer(Path(out), train, vocab_size, world)
    torch.manual_seed(seed)  # every process draws the same weights
    model = GPT(model_config(options, tokenizer)).to(world.device)
    windows = Windows(join(tokenizer, train), context, batch, seed)
    trainer = Trainer(model, windows, config, out, world=world)
    metrics = trainer.fit()
    loss = -score_stream(model, join(tokenizer, heldout)[:20_000]).mean().item()
    if world.rank == 0:
        print(f"\nheld-out loss {loss:.3f} nats per token; {trainer.checkpoint}")
    return metrics


def shared_tokenizer(
    folder: Path, texts: list[str], vocab_size: int, world: World
) -> Tokenizer:
    """Let the first process learn the tokenizer, and all others read what it wrote."""
    path = folder / "tokenizer.json"
    if world.rank == 0 and not path.is_file():
        Tokenizer.train(texts, vocab_size, progress=True).save(path)
    if world.size > 1:
        dist.barrier()
    return Tokenizer.load(path)
