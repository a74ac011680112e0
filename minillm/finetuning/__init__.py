"""Fine-tuning: from a model that continues to one that responds, and cheaper ways.

Read ``formats`` (whose data), ``likeness`` and ``lessons`` (what of it is learned),
``sft`` (what is trained), ``stopping`` (for how long), ``collapse`` (into what it may),
``packing``, ``mixing`` (of several tasks), and ``respond`` (what came of it);
``tools``, ``tool_chat`` and ``tool_formats`` for conversations with programs;
``json_automaton`` and ``constrained``
for text that always parses. Then what is trained instead of the model: ``targets`` and
``adapted`` (what such layers share), ``lora``, ``lora_state``, ``adapter_files``,
``dora``, ``ia3``; ``bottleneck``, ``prefix``, ``prompts``, which cannot be merged;
``qlora``, on a base in four bits. ``forgetting`` is the price of all of it, and what
can be done; ``continued`` is pre-training that goes on, with more words.
"""

from minillm.finetuning.adapted import (
    adapted_layers,
    count_trainable,
    merge,
    unload,
    unmerge,
)
from minillm.finetuning.adapter_files import load_lora, save_lora
from minillm.finetuning.bottleneck import apply_adapters, fuse_adapters
from minillm.finetuning.collapse import distinct_n, first_word_entropy, self_overlap
from minillm.finetuning.constrained import JsonMask, generate_json
from minillm.finetuning.continued import (
    extend_tokenizer,
    grow_vocabulary,
    piece_shares,
    rewarmed,
)
from minillm.finetuning.dora import DoRALinear
from minillm.finetuning.forgetting import (
    Replay,
    anchor,
    ewc,
    fisher_information,
    kl_to_base,
    l2_sp,
)
from minillm.finetuning.formats import (
    ALPACA,
    LLAMA3,
    read_conversation,
    read_jsonl,
    tagged,
)
from minillm.finetuning.ia3 import IA3Linear, apply_ia3
from minillm.finetuning.json_automaton import accepts, schema
from minillm.finetuning.lessons import Lessons, prepare_lessons
from minillm.finetuning.likeness import similarity
from minillm.finetuning.lora import LoRALinear, apply_lora, lora_layers
from minillm.finetuning.lora_state import compose_lora, load_lora_state, lora_state
from minillm.finetuning.mixing import Mixture, mixing_shares
from minillm.finetuning.packing import pack, packed_logits
from minillm.finetuning.prefix import apply_prefix, freeze_prefix
from minillm.finetuning.prompts import apply_prompt, freeze_prompt
from minillm.finetuning.qlora import (
    QLoRALinear,
    apply_qlora,
    loftq_start,
    merged_floats,
)
from minillm.finetuning.respond import respond
from minillm.finetuning.sft import finetune, sft_config, sft_examples
from minillm.finetuning.stopping import Look, StoppingRule, fit_to_best, mean_loss
from minillm.finetuning.tool_chat import (
    CHATML_TOOLS,
    LLAMA3_TOOLS,
    encode_tool_chat,
    encode_tool_prompt,
    read_turn,
)
from minillm.finetuning.tool_formats import (
    describe_tools,
    read_tool_conversation,
    write_sharegpt,
    write_tools_openai,
)
from minillm.finetuning.tools import Call, Turn
