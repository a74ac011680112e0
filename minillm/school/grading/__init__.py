"""Grading: the same checks as in the notebook, asked of a child process.

Read ``wire`` and ``subject``, then the two subjects, ``inprocess`` and ``process``
(with ``workshop`` and ``child``); then ``handedin``, which reads what students hand in,
``find``, which picks answers out of it, ``grade``, which judges a class, and
``overview``, which tells the instructor.
"""
