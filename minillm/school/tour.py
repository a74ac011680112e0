"""The main job: one small model goes through the whole pipeline, and is measured.

On TinyWorld, the language whose truth is known, every measurement stands beside the
truth. On real text it stands beside other models. Either way it ends with a table and a
page, and an interrupted run goes on when the same command is given again.
"""

from pathlib import Path

from minillm.school.options import TINYWORLD, TourOptions
from minillm.school.pipeline import HEADER, Run, open_run
from minillm.school.report import plain_table


def tour(
    options: TourOptions, folder: str | Path = "runs/tour", fresh: bool = False
) -> Run:
    """Take the model through the pipeline; return the run with its table.

    Args:
        options: what to do.
        folder: where weights, tokenizer, measurements and ``report.html`` go.
        fresh: discard an interrupted run in that folder.

    Raises:
        TrainingInterrupted: Ctrl-C; the same call goes on.
        ValueError, FileNotFoundError: see ``load_corpus`` and ``open_run``.
    """
    run, resumed = open_run(folder, options, fresh)
    if options.data == TINYWORLD:
        from minillm.school.tiny_tour import tiny_tour as stages
    else:
        from minillm.school.text_tour import text_tour as stages
    page = stages(run, options, resumed)
    run.save(finished=True)
    print("\n" + plain_table(HEADER, run.table()))
    print(f"\nreport: {page}")
    return run
