"""Results as CSV."""

import csv
from pathlib import Path

from qtool.reports.comparisons import Equivalence
from qtool.reports.results import EpochLine
from qtool.reports.spreadsheets import comparison_csv, metrics_csv, written
from tests.reports.pages import comparison

EQUIVALENCE = Path(__file__).parent.parent / "golden" / "results" / "equivalence.json"

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


def test_a_figure_of_each_layer_has_a_column_for_each() -> None:
    of_layers = {"flip_ratio": {"conv1": 0.25, "fc": 0.5}}
    (row,) = rows_of(metrics_csv([EpochLine.model_validate(LINE | of_layers)]))
    assert (row["flip_ratio.conv1"], row["flip_ratio.fc"]) == ("0.25", "0.5")
    assert "flip_ratio" not in row


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_an_arm_has_its_seeds_and_its_difference_from_the_first() -> None:
    first, better = rows_of(comparison_csv(comparison()))
    assert list(first)[:8] == [
        *("arm", "mean", "std", "failed", "seed_0", "seed_1"),
        *("difference_mean", "difference_low"),
    ]
    assert [better[f"seed_{seed}"] for seed in (0, 1)] == ["0.6", "0.64"]
    assert better["difference_mean"] == "0.11"
    assert (better["difference_low"], better["difference_high"]) == ("0.05", "0.17")
    assert better["difference_pairs"] == "2"
    assert (better["against"], first["against"]) == ("straight_through", "")
    assert {value for key, value in first.items() if key.startswith("difference_")} == {""}


def test_a_seed_that_failed_is_an_empty_cell_and_a_rate_that_is_known_a_column() -> None:
    result = comparison()
    arm = result.arms[1].model_copy(update={"values": [None, 0.64], "integrated_rate": 0.5})
    _, row = rows_of(comparison_csv(result.model_copy(update={"arms": [result.arms[0], arm]})))
    assert (row["seed_0"], row["seed_1"], row["integrated_rate"]) == ("", "0.64", "0.5")


def test_an_equivalence_says_of_each_arm_and_rate_how_alike_it_stays() -> None:
    result = Equivalence.read(EQUIVALENCE)
    rows = {row["arm"]: row for row in rows_of(comparison_csv(result))}
    assert list(rows) == [arm.name for arm in result.arms]
    for place, rate in enumerate(result.learning_rates):
        for arm, values in result.inference_agreement.items():
            row = rows[f"lr-{rate:g}/{arm}"]
            assert float(row["learning_rate"]) == rate
            assert float(row["inference_agreement"]) == values[place]
            assert float(row["weight_alignment_error"]) == result.weight_alignment_error[arm][place]
        custom = rows[f"lr-{rate:g}/custom"]
        assert custom["inference_agreement"] == custom["difference_mean"] == ""
