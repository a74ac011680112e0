"""Grading: the same checks as in the notebook, asked of a child process.

Read ``wire`` and ``subject``, then the two subjects, ``inprocess`` and ``process`` (with
``workshop`` and ``child``); then ``find``, which picks answers out of what students hand
in, ``examine``, which judges one answer, and ``grade``, which judges a class.
"""
