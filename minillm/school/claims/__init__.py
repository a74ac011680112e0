"""Claims that are often repeated, put to the test: what is said, what was measured.

    claim("A1", 10.8)

prints the sentence, the value and the verdict, in a notebook beside the experiment that
it comes from. Nothing is written: the ledger is read from the outputs of the committed
notebooks, so it cannot say anything that no reader has seen.
"""

from minillm.school.claims.claim import VERDICTS, Claim, claim, find, rounded
from minillm.school.claims.ledger import Entry, ledger

__all__ = ["VERDICTS", "Claim", "Entry", "claim", "find", "ledger", "rounded"]
