"""Results as CSV."""

from qtool.reports.results import EpochLine
from qtool.reports.spreadsheets import metrics_csv, written

LINE = {
    "epoch": 1,
    "step": 2,
    "train_loss": 0.5,
    "train_accuracy": None,
    "learning_rate": 0.1,
    "validation_loss": 0.25,
    "validation_accuracy": 0.75,
    "seconds": 1,
}


def test_a_figure_that_came_later_has_a_column_where_the_line_has_it() -> None:
    later = LINE | {"epoch": 2}
    lines = [EpochLine.model_validate(line) for line in (LINE, {**later, "alpha": 0.5})]
    assert metrics_csv(lines) == (
        "epoch,step,train_loss,train_accuracy,learning_rate,alpha,validation_loss,"
        "validation_accuracy,seconds\n"
        "1,2,0.5,,0.1,,0.25,0.75,1\n2,2,0.5,,0.1,0.5,0.25,0.75,1\n"
    )


def test_names_are_text_without_what_a_terminal_obeys() -> None:
    assert written([{"a,b\x1b[2J": 'say "x"\x07'}]) == '"a,b[2J"\n"say ""x"""\n'


def test_nothing_is_an_empty_file_of_no_columns() -> None:
    assert metrics_csv([]) == "\n"
