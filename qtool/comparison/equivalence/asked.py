"""What is asked of an estimator: the four arms, and the learning rates and seeds they train with.

custom: the estimator as it is. mapped: straight_through from M(w0) at the learning rate times
alpha (Adam: straight_through, nothing changed). naive: straight_through, nothing changed.
jitter: custom at 1.01 times the learning rate, the noise below which nothing can be told apart.
Every arm is held against custom, of the same seed and learning rate.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

from dataclasses import dataclass

from qtool.straight_through.recipe import Equivalent

CUSTOM, MAPPED, NAIVE, JITTER = "custom", "mapped", "naive", "jitter"
JITTER_FACTOR = 1.01


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        theory: what is known of the recipe with the custom estimator.
        rates: learning rates, in the order of the report.
        seeds: one trial of each arm and learning rate for each.
    """

    theory: Equivalent
    rates: list[float]
    seeds: list[int]

    @property
    def arms(self) -> list[str]:
        """Return the arms that are trained: under Adam mapped is naive, and stands for both."""
        if self.theory.outside:
            return [CUSTOM, NAIVE, JITTER]
        if self.theory.adaptive:
            return [CUSTOM, MAPPED, JITTER]
        return [CUSTOM, MAPPED, NAIVE, JITTER]

    @property
    def compared(self) -> dict[str, str]:
        """Return the arms that are held against custom, each with the one that was trained."""
        trained = {arm: arm for arm in self.arms[1:]}
        return {**trained, NAIVE: trained.get(NAIVE, MAPPED)}

    @property
    def alphas(self) -> list[float]:
        """Return the factors of learning rates, each once."""
        return list(dict.fromkeys(m.in_steps.alpha for m in self.theory.maps.values()))

    @property
    def estimators(self) -> str:
        """Return the estimators' names, each once."""
        return ", ".join(dict.fromkeys(m.estimator for m in self.theory.maps.values()))


def arm_name(rate: float, arm: str) -> str:
    """Return the name of an arm at a learning rate, which is its folder's too."""
    return f"lr-{rate:g}/{arm}"
