"""Before an equivalence is trained: whether it could end with a verdict, and how sure of it."""

from contextlib import suppress
from math import log
from pathlib import Path

from qtool.comparison.equivalence.asked import MAPPED, Question
from qtool.comparison.equivalence.slopes import line_of
from qtool.comparison.equivalence.verdict import BETWEEN
from qtool.comparison.judged import Judging
from qtool.comparison.statistics.power import found_shift, limits_of_t
from qtool.errors import InputError
from qtool.reports.comparisons import Equivalence

# What errors lie off their line by, in natural logarithms, where nothing is known: the most of
# three studies that were measured (0.19 on MNIST; 0.11 and 0.04 on digits).
ASSUMED_NOISE = 0.2


def refuse_looks_without_verdict(question: Question, judging: Judging) -> None:
    """Check that a planned look could end the comparison.

    Raises:
        InputError: If no look ever has a verdict; says why.
    """
    if not judging.looks:
        return
    given = f"--looks {','.join(map(str, judging.looks))}"
    if question.theory.outside:
        raise InputError(
            f"{given}: no look would have a verdict, as {question.estimators} is outside the "
            f"class: {question.theory.outside}; leave it out"
        )
    if len(question.rates) < 2:
        raise InputError(
            f"{given}: no look would have a verdict, which is by the power of the learning rate; "
            "give two --learning-rates or more, or leave it out"
        )


def said_of_power(question: Question, judging: Judging, report: Path) -> str:
    """Return which powers of the learning rate would be told apart, "" where none is judged.

    Args:
        question: what is compared.
        judging: when it is looked at.
        report: comparison.json of a comparison of before, whose noise is taken where it is there.
    """
    if question.theory.outside:
        return ""
    rates, seeds = question.rates, len(question.seeds)
    of = f"{_count(len(rates), 'rate')}, {_count(seeds, 'seed')}"
    logs = [log(rate) for rate in rates]
    middle = sum(logs) / len(logs)
    spread = seeds * sum((each - middle) ** 2 for each in logs)
    freedom = (len(rates) - 1) * seeds - 1
    if freedom < 1:
        return (
            f"{of} do not tell how sure a power of the learning rate is, so the verdict stays "
            "open; give more --learning-rates or --seeds"
        )
    known = _noise_of(report)
    noise = ASSUMED_NOISE if known is None else known
    why = "as assumed" if known is None else "as those before"
    found = found_shift(limits_of_t(freedom, judging.alpha)) * noise / spread**0.5
    wider = "give more or wider --learning-rates, or more --seeds"
    more = f"; a verdict takes {BETWEEN:g}: {wider}" if found > BETWEEN else ""
    return (
        f"powers of the learning rate {found:.2g} apart would be told apart 4 times in 5 ({of}), "
        f"if errors lie {100 * noise:.0f} % off their line, {why}{more}"
    )


def _noise_of(report: Path) -> float | None:
    """Return by how much mapped's errors lay off their line before; None where nobody knows."""
    errors: dict[int, dict[float, float | None]] = {}
    with suppress(InputError):  # none, or of a comparison that is not finished
        for curve in Equivalence.read(report).curves:
            if curve.arm == MAPPED:
                by_rate = errors.setdefault(curve.seed, {})
                by_rate[curve.learning_rate] = curve.weight_alignment_error[-1]
    line = line_of(errors)
    return None if line is None else line.noise


def _count(many: int, what: str) -> str:
    return f"{many} {what}" if many == 1 else f"{many} {what}s"
