"""The exercises, by chapter, and what their checks are made of.

In a notebook: ``from minillm.school.checks import check, hint``. To understand it, read
``exercise`` and ``tools``, then a chapter, for instance ``ch01``; ``compare`` and
``examine`` judge an answer, ``notebook`` tells the student.
"""

from minillm.school.checks.examine import Result, examine
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.lookup import all_exercises, exercise
from minillm.school.checks.notebook import check, hint, params
