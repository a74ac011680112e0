"""Commands of the classroom: ``minillm check | grade | zoo | doctor``.

Like all commands, they import what is heavy when they are called.
"""

import argparse


def add_classroom(commands) -> None:
    """Add the parsers of these commands."""
    _add_check(commands)
    _add_grade(commands)
    _add_zoo(commands)
    doctor = commands.add_parser("doctor", help="is everything ready? what is missing?")
    doctor.set_defaults(command=_doctor)


def _add_check(commands) -> None:
    check = commands.add_parser("check", help="what is right and wrong in your answers")
    check.add_argument("file", help="a notebook or a script")
    check.add_argument("--chapter", help="for instance 01; default all")
    check.add_argument("--hint", type=int, default=0, choices=range(4), help="1, 2, 3")
    check.add_argument("--seed", type=int, default=0, help="of the numbers tried")
    check.add_argument("--slow", action="store_true", help="replay experiments, too")
    check.set_defaults(command=_check)


def _add_grade(commands) -> None:
    grade = commands.add_parser("grade", help="grade a folder of submissions")
    grade.add_argument("submissions", help="a file or a folder for each student")
    grade.add_argument("--out", required=True, help="folder for the report")
    grade.add_argument("--chapter", help="for instance 01; default all")
    grade.add_argument("--seed", type=int, default=0, help="of the numbers tried")
    grade.add_argument("--slow", action="store_true", help="replay experiments, too")
    grade.set_defaults(command=_grade)


def _add_zoo(commands) -> None:
    zoo = commands.add_parser("zoo", help="the trained models of the notebooks")
    zoo.add_argument("names", nargs="*", help="to be trained, if they are missing")
    zoo.add_argument("--all", action="store_true", help="train all that are missing")
    zoo.set_defaults(command=_zoo)


def _check(options: argparse.Namespace) -> int:
    from minillm.school.checks.notebook import told
    from minillm.school.grading.grade import Settings, check_file

    settings = Settings(options.chapter, options.seed, options.slow)
    results = check_file(options.file, settings)
    for result in results:
        print(told(result, options.hint))
    return int(any(verdict.wrong for r in results for verdict in r.verdicts))


def _grade(options: argparse.Namespace) -> None:
    from minillm.school.grading.grade import Settings, grade

    settings = Settings(options.chapter, options.seed, options.slow)
    graded = grade(options.submissions, options.out, settings)
    print(f"{len(graded)} submissions graded; read {options.out}/report.txt")


def _zoo(options: argparse.Namespace) -> None:
    from minillm.school import zoo

    zoo.main(options.names, options.all)


def _doctor(options: argparse.Namespace) -> int:
    from minillm.school.doctor import doctor

    return doctor()
