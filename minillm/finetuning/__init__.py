"""Fine-tuning: from a model that continues to one that responds.

Read ``sft`` (what is trained), then ``respond`` (what came of it).
"""

from minillm.finetuning.respond import respond
from minillm.finetuning.sft import finetune, sft_config, sft_examples

__all__ = ["finetune", "respond", "sft_config", "sft_examples"]
