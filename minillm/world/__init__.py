"""TinyWorld, a language whose truth is known: facts, skills, and exact information.

In the order of reading: ``menus`` and ``recorder`` (how choices become text and
nats), ``interpreters`` (sampling, enumerating, reading), ``tokens`` (nats per token);
``config``, ``words`` and ``lore`` (what is true), ``telling`` and ``skills`` (what is
written), ``language`` (the second one), ``tinyworld`` (all together). Then what is
asked of a model: ``questions``, ``preferences``, ``asking``, ``instructions`` and
``closed``.
"""

from minillm.world.config import DOMAINS, WorldConfig
from minillm.world.interpreters import (
    AmbiguousGrammar,
    NotInWorld,
    check_unambiguous,
    enumerate_documents,
    read,
    sample,
)
from minillm.world.menus import Menu, menu
from minillm.world.recorder import (
    IRREDUCIBLE,
    KINDS,
    PREDICTABLE,
    REMEMBERED,
    Document,
    Recorder,
    Segment,
)
from minillm.world.tinyworld import World
from minillm.world.tokens import ExactTokenNats, TokenNats, attributed_nats

__all__ = ["DOMAINS", "IRREDUCIBLE", "KINDS", "PREDICTABLE", "REMEMBERED"]
__all__ += ["AmbiguousGrammar", "Document", "ExactTokenNats", "Menu", "NotInWorld"]
__all__ += ["Recorder", "Segment", "TokenNats", "World", "WorldConfig"]
__all__ += ["attributed_nats", "check_unambiguous", "enumerate_documents", "menu"]
__all__ += ["read", "sample"]
