"""What is said of layers that may saturate on processors without VNNI."""

from collections.abc import Sequence

SHOWN = 8  # names that a sentence has room for


def sentence_on(names: Sequence[str], *, in_a_file: bool) -> str:
    """Say which layers may saturate and what would prevent it; "" where there are none.

    Args:
        names: of the layers.
        in_a_file: their codes are known; else their widths alone.
    """
    if not names:
        return ""
    setting = "quantization.weights.saturation: avoid"
    remedy = f"convert with --no-saturation, or train with {setting}" if in_a_file else setting
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    listed = ", ".join(name or "the model itself" for name in names[:SHOWN])
    by = "" if in_a_file else " by their widths"
    return f"may saturate on processors without VNNI{by}: {listed}{more} (against it: {remedy})"
