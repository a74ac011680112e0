"""From text to tokens: corpora, the cutting of text into pieces, BPE, the tokenizer.

Then to batches: ``batches`` cuts a stream into windows; ``templates``, ``messages``,
``chat`` and ``examples`` make rows of conversations, for fine-tuning.
"""

from minillm.data.bpe import train_bpe
from minillm.data.chat import (
    Encoded,
    chat_text,
    encode_chat,
    encode_prompt,
    show_mask,
    stop_token,
)
from minillm.data.corpora import Corpus, load_corpus, train_heldout_split
from minillm.data.messages import Message, conversation
from minillm.data.overlap import overlap
from minillm.data.tokenizer import Tokenizer
