"""One thread a worker: two busy processes of two threads each run ten times slower."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

import torch

torch.set_num_threads(1)

# A shell starts what it puts into the background deaf to Ctrl-C, children included. The
# tests that press it would then wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
