"""What surrounds the lessons: plots, checks, grading, reports, the health check.

The rooms that teach never import from here, so each of them can be read alone.
"""
