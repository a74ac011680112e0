"""minillm: every component of LLM training in code good enough to read aloud.

The rooms stand in the order of the pipeline, and each imports only from those before
it: ``world`` (a language whose truth is known), ``data`` (tokenizer, corpora),
``model``, ``evaluation``, ``training``; ``school`` holds what surrounds them (plots,
reports, the command line's main job).

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
"""

__version__ = "0.1.0"
