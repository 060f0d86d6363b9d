"""Faults planted on purpose: each must make the tests fail that are there to notice it.

A patch replaces a piece of code that stands once in the package, wherever that is, so it outlives
moves. One that no longer applies fails and says so: write it anew for the code as it is now. To
add one, plant the fault by hand first and see that nothing notices; then write the test that does.

    pytest -m slow tests/mutants
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TO_INTEGER = "tests/conversion/test_to_integer.py::test_"
SUMS = "tests/integer/test_sums.py::test_"
WHOLE = "tests/files/test_whole.py::test_"
FREEZING = "tests/quantizers/test_oscillation.py::test_"
STATISTICS = "tests/comparison/test_statistics.py::test_"
RULE = "tests/test_evaluation.py::test_"
BESIDE = "tests/quantizers/test_fake_quantize.py::test_"
AIDS = "tests/training/test_step_aids.py::test_"
TAUGHT = "tests/training/test_distillation.py::test_"
TEACHER = "tests/runs/test_teacher.py::test_"
CHOSEN = "tests/post_training/test_"
BITS = "tests/bits/test_"


@dataclass(frozen=True)
class Patch:
    """A planted fault: `old` becomes `new`, and each test of `killers` must fail."""

    old: str
    new: str
    killers: tuple[str, ...]


PATCHES = {
    "a width whose table nobody pays": Patch(
        "row[place], row[len(flat) + names.index(one.shares)] = 1, -1",
        "row[place], row[len(flat) + names.index(one.shares)] = 0, -1",
        (BITS + "choose.py::test_no_choice_within_the_limit_is_better",),
    ),
    "means of channels moved by a width": Patch(
        "return output - (output - before).mean(others, keepdim=True)",
        "return output",
        (
            BITS
            + "sensitivity.py::test_a_layer_alone_costs_what_it_does_when_it_is_rounded_by_hand",
        ),
    ),
    "widths of a budget not written into the recipe": Patch(
        "return recipe.with_overrides(_choice(self.found).overrides)",
        "return recipe.without_budget()",
        (BITS + "budget.py::test_widths_are_chosen_kept_and_taken_again",),
    ),
    "a pass that replays what has changed": Patch(
        "if ended is not None and ended.at < self._from:",
        "if ended is not None:",
        ("tests/graph/test_replayed.py::test_a_pass_from_a_layer_on_is_a_whole_one",),
    ),
    "what takes part in a step left out of a run": Patch(
        "step = trainer.step = step_of(trainer, recipe)",
        "step = step_of(trainer, recipe)",
        (AIDS + "a_run_with_aids_ends_as_if_it_had_never_stopped",),
    ),
    "the pull to the grid without the learning rate": Patch(
        "weight.sub_(error.mul_(self._strength).mul_(_rate_of(group)))",
        "weight.sub_(error.mul_(self._strength))",
        (AIDS + "cage_takes_the_rounding_error_from_the_weight_beside_the_optimizers_step",),
    ),
    "quantized weights not raised for the second pass": Patch(
        "return w_hat + by[quantizer] if quantizer in by else w_hat",
        "return w_hat",
        (AIDS + "saq_follows_the_gradient_of_the_raised_quantized_weights",),
    ),
    "changes of codes not averaged": Patch(
        'running = self._momentum * group["transition_rate"] + (1 - self._momentum) * k',
        "running = k",
        (AIDS + "the_rate_goes_by_the_codes_that_change",),
    ),
    "the softness of the slope stays where it began": Patch(
        'learned = {"alpha": within(self.softness.detach())}',
        "learned = {}",
        ("tests/quantizers/test_softness.py::test_the_slope_goes_by_what_alpha_has_become",),
    ),
    "chosen codes squashed once more": Patch(
        "quantizer.squashes = quantizer.tracker.freezes = False  # both are in the weight by now\n"
        "    if not torch",
        "if not torch",
        (CHOSEN + "patches.py::test_codes_that_were_chosen_are_those_of_rounding_to_nearest",),
    ),
    "what rounding a column does made up for in the wrong direction": Patch(
        "left[:, column:last] -= error * factor[column, column:last]",
        "left[:, column:last] += error * factor[column, column:last]",
        (CHOSEN + "gptq.py::test_codes_are_those_of_the_formula_one_column_at_a_time",),
    ),
    "the regularizer of learned rounding dropped": Patch(
        "inner.sub_(pull, alpha=2 * beta * weight)",
        "pass",
        (CHOSEN + "learned_rounding.py::test_the_gradient_is_that_of_the_loss_by_differences",),
    ),
    "all values rounded while blocks are learned": Patch(
        "return torch.where(_some(x, generator), rounded, x)",
        "return rounded",
        (CHOSEN + "by_block.py::test_values_are_left_float_at_random",),
    ),
    "codes put onto the scales of before": Patch(
        "for key, value in self.changed.items():",
        "for key, value in {}.items():",
        (CHOSEN + "by_layer.py::test_killed_and_started_again_it_ends_the_same",),
    ),
    "work of another seed gone on with": Patch(
        'if header.metadata.get("identity") != identity:',
        "if False:",
        (CHOSEN + "by_layer.py::test_other_work_and_damaged_files_begin_anew_and_say_so",),
    ),
    "room for sums in int32 dropped": Patch(
        "bias.abs() / steps + sums > INT32_MAX",
        "bias.abs() / steps > INT32_MAX",
        (TO_INTEGER + "a_bias_leaves_room_in_int32_for_all_products",),
    ),
    "only the upper end of the input counted in its reach": Patch(
        "max(abs(self.grid.code_min - zero), abs(self.grid.code_max - zero))",
        "abs(self.grid.code_max - zero)",
        (
            TO_INTEGER + "a_bias_leaves_room_in_int32_for_all_products",
            SUMS + "the_largest_sum_is_that_of_the_worst_input",
        ),
    ),
    "a scale of zero where a dead channel has no bias": Patch(
        "bias.abs().clamp_min(1e-12)",
        "bias.abs()",
        (TO_INTEGER + "a_dead_channel_gives_its_bias_whatever_that_is",),
    ),
    "the bias of a dead channel beyond int32": Patch(
        "(given.scale.double() * 2**30)",
        "(given.scale.double() * 2**31)",
        (TO_INTEGER + "a_dead_channel_gives_its_bias_whatever_that_is",),
    ),
    "grid membership unchecked in the proof": Patch(
        "and not grid.contains(layer.codes)",
        "and False",
        (TO_INTEGER + "the_proof_catches_codes_off_their_grid_where_no_output_tells",),
    ),
    "floor for round in freezing": Patch(
        "torch.where(new, self.average.round(), self.average)",
        "torch.where(new, self.average.floor(), self.average)",
        (FREEZING + "a_mean_code_between_two_is_the_nearer_one",),
    ),
    "fsync removed": Patch(
        "os.fsync(file.fileno())",
        "pass",
        (WHOLE + "what_takes_the_place_of_a_file_lies_on_the_disk_already",),
    ),
    "temporary folders of one name": Patch(
        "folder = Path(tempfile.mkdtemp(ENDING, prefix, where))",
        '(folder := where / f"{prefix}folder00{ENDING}").mkdir(exist_ok=True)',
        (WHOLE + "two_processes_that_write_one_file_do_not_disturb_each_other",),
    ),
    "float32 trusted beyond its integers": Patch(
        "EXACT_FLOAT32 = 2**24",
        "EXACT_FLOAT32 = 2**26",
        (SUMS + "sums_that_float32_cannot_hold_are_exact",),
    ),
    "bias left out of the largest sum": Patch(
        "sums = sums + self.bias.to(torch.int64).abs()",
        "pass",
        (
            SUMS + "sums_that_float32_cannot_hold_are_exact",
            SUMS + "the_largest_sum_is_that_of_the_worst_input",
        ),
    ),
    "Holm's procedure without its steps": Patch(
        "alpha / (len(tests) - k)",
        "alpha / len(tests)",
        (STATISTICS + "holm_s_procedure_is_that_of_the_published_example",),
    ),
    "images predict the variance of seeds without the factor 2": Patch(
        "C = 2.0 ",
        "C = 1.0 ",
        (STATISTICS + "the_spread_is_the_weighted_mean_of_both_variances",),
    ),
    "images clear from a fifth of sigma on": Patch(
        "SURE = 0.1 ",
        "SURE = 0.2 ",
        (RULE + "an_image_is_clear_from_a_tenth_of_the_standard_deviation_on",),
    ),
    "a blend that passes nothing of the estimator beside it": Patch(
        "own = x.detach() if self.settings.estimator is None else x",
        "own = x.detach()",
        (BESIDE + "a_blend_beside_an_estimator_passes_its_gradient_through_the_rounded_share",),
    ),
    "softened outputs whose gradient fades with the temperature": Patch(
        """reduction="batchmean") * temperature**2""",
        """reduction="batchmean")""",
        (TAUGHT + "softened_outputs_part_by_t_squared_times_their_divergence",),
    ),
    "a teacher in training mode": Patch(
        "self.teacher = teacher.eval().requires_grad_",
        "self.teacher = teacher.requires_grad_",
        (TAUGHT + "a_step_mixes_both_losses_by_their_share_and_tells_each",),
    ),
    "what a block returns kept where it is overwritten": Patch(
        "self.seen[self.name] = apart(output.clone)",
        "self.seen[self.name] = output",
        (TAUGHT + "what_a_block_returns_is_kept_as_it_was_and_hooks_are_taken_away",),
    ),
    "a run that goes on with another teacher": Patch(
        "if kept is not None and kept != distillation.digest:",
        "if kept is None:",
        (TEACHER + "a_run_goes_on_with_its_very_teacher_only_and_converts_without_it",),
    ),
    "a teacher whose head starts anew": Patch(
        "if built.fresh_head:",
        "if not built:",
        (TEACHER + "a_teacher_that_cannot_teach_is_refused",),
    ),
}


def place_of(patch: Patch, package: Path) -> Path:
    """Return the one file of a package that a patch applies to."""
    texts = {path: path.read_text() for path in sorted(package.rglob("*.py"))}
    places = [path for path, text in texts.items() for _ in range(text.count(patch.old))]
    where = ", ".join(str(path.relative_to(package)) for path in places) or "none"
    assert len(places) == 1, f"no longer applies: places with {patch.old!r}: {where}"
    return places[0]


def run(tree: Path, tests: Iterable[str]) -> tuple[int, set[str], str]:
    """Run tests of a tree; return pytest's exit code, the names of those that fail, its output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-rfE", "--tb=short"]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env=kept | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.findall(r"^FAILED ([^\s\[]+)", ended.stdout, flags=re.MULTILINE)
    return ended.returncode, set(failed), ended.stdout + ended.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the tests need, to plant faults in."""
    for name in ("qtool", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_applies_in_one_place(name: str) -> None:
    assert place_of(PATCHES[name], ROOT / "qtool").suffix == ".py"


@pytest.mark.slow
def test_without_a_fault_the_tests_pass(tree: Path) -> None:
    code, failed, said = run(tree, {name for patch in PATCHES.values() for name in patch.killers})
    assert (code, failed) == (0, set()), said


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHES)
def test_a_planted_fault_dies(tree: Path, name: str) -> None:
    patch = PATCHES[name]
    place = place_of(patch, tree / "qtool")
    place.write_text(place.read_text().replace(patch.old, patch.new))
    code, failed, said = run(tree, patch.killers)
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert failed == set(patch.killers), said
