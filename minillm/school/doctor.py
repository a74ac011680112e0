"""A report on this machine that a student can paste into a question.

Most questions that a course on LLMs gets are about machines: the wrong Python, another
torch, a full disk, two OpenMP runtimes, a GPU that is not seen. ``minillm doctor``
looks at all of that and says what to do. It needs nothing but the standard library to
start, and writes the home folder as ``~``, so that the report can be shown in public.
"""

import os
import sys

from minillm.school.findings import Finding, report
from minillm.school.folders import cache_folder
from minillm.school.installation import (
    check_cache,
    check_packages,
    check_torch,
    check_triton,
    installed_versions,
    pinned_versions,
)
from minillm.school.machine import (
    CHECKOUT,
    check_arithmetic,
    check_disk,
    check_memory,
    check_platform,
    check_processors,
    check_python,
    check_threads,
    memory_gigabytes,
)


def doctor() -> int:
    """Print the report; the exit status is 1 if anything in it is a problem."""
    findings = examine()
    print(report(findings))
    return int(any(finding.level == "problem" for finding in findings))


def examine() -> list[Finding]:
    """Everything that the report says, in its order."""
    findings = [check_python(sys.version_info[:2]), check_platform()]
    findings += [check_processors(), check_memory(memory_gigabytes()), check_disk()]
    findings += check_torch()
    findings += check_packages(installed_versions(), pinned_versions(CHECKOUT))
    findings += [check_triton(), check_cache(cache_folder())]
    findings += check_threads(dict(os.environ))
    return findings + [check_arithmetic()]


if __name__ == "__main__":
    sys.exit(doctor())
