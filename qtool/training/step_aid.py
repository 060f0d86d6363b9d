"""What takes part in a training step beside the optimizer: hooks that do nothing here.

To add one, write a subclass in a file of its own, a key of `training` that asks for it, and let
`step_of` in `qtool.runs.built.equipment` put the two together.
"""


class StepAid:
    """Takes part in each training step of a model."""

    def look(self) -> None:
        """See the model before what is due once per step is done, which looks at codes anew."""

    def begin(self) -> None:
        """Do what is due before the step's passes; no graph of a step holds this."""

    def before(self) -> None:
        """Act on gradients, rates and weights, right before the optimizer's step."""

    def after(self) -> None:
        """Act on weights, right after the optimizer's step."""
