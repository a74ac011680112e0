"""Systems: what training holds in memory, and how it spans processes.

Read ``memory`` and ``checkpointing``; then ``launch`` and ``wire`` (how processes
start, and what they can say to one another), ``data_parallel`` and ``zero`` (share rows
and states), ``tensor_parallel`` (share matrices), ``schedules`` and ``pipeline`` (share
layers), ``expert_parallel``. All is for reading; ``minillm.training`` trains with
PyTorch's engines, and tests compare.
"""

from minillm.systems.checkpointing import checkpointing, peak_bytes, saved_bytes
from minillm.systems.data_parallel import all_reduce_gradients, backward_share
from minillm.systems.expert_parallel import expert_parallel
from minillm.systems.launch import WorkerFailed, launch
from minillm.systems.memory import (
    FLOAT32,
    MIXED,
    Bytes,
    ModelStates,
    activation_bytes,
    model_states,
)
from minillm.systems.pipeline import Stage, run_schedule
from minillm.systems.schedules import bubble, gpipe, in_flight, one_f_one_b, timeline
from minillm.systems.tensor_parallel import cut_model, vocabulary_loss
from minillm.systems.wire import Wire, ring_bytes
from minillm.systems.zero import ZeroOptimizer, clip_parts, shard_weights
