"""Compression: the same model in fewer bits, or its abilities in another one.

Read ``codebooks`` and ``nf4`` (four bits a weight), ``linear`` (a layer that holds
them), ``int8``, ``floats``; then ``bits``, ``uniform``, ``calibration``, ``gptq`` and
``awq`` (which code to take), ``whole`` (all layers of a model, and the bits that it
really holds), ``kquants`` and ``gguf_file`` (what llama.cpp reads), ``qat``;
``distillation`` and ``distilling``, ``merging`` and ``thinning`` make one model of
others; ``synthetic`` makes text of one, and keeps what is right.
"""

from minillm.compression.awq import awq
from minillm.compression.calibration import Inputs, calibrate
from minillm.compression.codebooks import FP4_LEVELS, NF4_LEVELS, nf4_levels
from minillm.compression.distillation import gkd_loss, kd_loss
from minillm.compression.distilling import distil, hard_loss, soft_loss, write
from minillm.compression.floats import round_floats
from minillm.compression.gguf_file import export_gguf, import_gguf
from minillm.compression.gptq import gptq
from minillm.compression.int8 import llm_int8_linear, quantize_int8
from minillm.compression.kquants import quantize_gguf
from minillm.compression.linear import HeldLinear, NF4Linear, held_bytes
from minillm.compression.merging import slerp, soup, task_arithmetic
from minillm.compression.nf4 import dequantize_nf4, quantize_nf4
from minillm.compression.qat import apply_qat, finish_qat
from minillm.compression.synthetic import (
    Sifted,
    expected_pass,
    pass_at_k,
    sample_responses,
    sift,
)
from minillm.compression.thinning import dare, ties
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.compression.whole import quantize_model, stored_bits
