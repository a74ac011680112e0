"""The exercises, by chapter, and what their checks are made of.

Read ``exercise`` and ``tools``, then a chapter, for instance ``ch01``.
"""

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.lookup import all_exercises, exercise
