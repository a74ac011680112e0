"""The model: what it is made of, how it writes, how it travels.

Read ``config`` (sizes and costs), ``layers``, ``attention``, ``gpt``, then ``sampling``
and ``generation``, then ``huggingface``. Models of many experts: ``routing``,
``balancing``, ``experts``, ``moe_config`` and ``moe``.
"""

from minillm.model.attention import Attention, KVCache, apply_rope, rope_rotations
from minillm.model.config import GPTConfig, count_parameters, flops_per_token
from minillm.model.generation import Generation, generate, pad_left
from minillm.model.gpt import GPT
from minillm.model.huggingface import export_huggingface, import_huggingface
from minillm.model.layers import RMSNorm, SwiGLU
from minillm.model.moe import MoE, moe_layers, nudge_biases, with_experts
from minillm.model.moe_config import MoEConfig, count_moe_parameters
from minillm.model.sampling import GREEDY, Sampling, sampling_logprobs
