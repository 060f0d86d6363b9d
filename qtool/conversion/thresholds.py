"""Whether it is values at rounding thresholds that make two models give different outputs.

Sums in float32 and in integers differ in the last bit, and so, now and then, does the level that a
value is rounded to. In a deep network that has learnt little the layers behind make more and more
of one such value, until the outputs have little to do with each other, though no part is wrong. A
fault would look alike at the outputs, so two things are asked that tell them apart: how far the
fake-quantized model moves by itself where all that it rounds is moved by as little, and whether the
integer model gives the same outputs once such values are put right, site by site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps

import torch
from torch import Tensor, nn

from qtool.conversion.difference import OF_JOINS
from qtool.graph.sites.frames import call_sites_of, sites_of
from qtool.integer.joins import integer_sites
from qtool.integer.layers import integer_layers
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.sites import SharedSite, SiteQuantizer

FEW = 1e-3  # of a site's values, beside those that the comparison of sites found


@contextmanager
def nudged(model: nn.Module, seed: int) -> Iterator[None]:
    """Move every value before it is rounded by what float32 may, up or down at random.

    That is the share of the largest value by which the integer form of a site may be off. Zeros
    stay: nothing is rounded on the way to them.
    """
    random = torch.Generator().manual_seed(seed)

    def nudge(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        x, *others = args
        if not isinstance(x, Tensor) or not x.numel():
            return args
        signs = torch.randint(0, 2, x.shape, generator=random).to(x.device) * 2 - 1
        return x + signs * (OF_JOINS * x.abs().max()) * (x != 0), *others

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ActivationQuantizer):
                stack.callback(module.register_forward_pre_hook(nudge).remove)
        yield


@dataclass
class Led:
    """What the fake-quantized model rounds at each site, and how the integer model follows it.

    Attributes:
        values: site -> what each call made, in turn.
        apart: site -> largest share of a call's values at which the integer model, given what the
            fake-quantized one has at all sites before, is a step off; 1 where calls or shapes are
            others.
    """

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def recording(self, reference: nn.Module) -> Iterator[None]:
        """Keep what a pass of the fake-quantized model rounds."""
        self.values.clear()
        stands = sites_of(reference)
        with ExitStack() as stack:
            for name, site in call_sites_of(reference).items():
                kept = self.values.setdefault(str(site), [])
                stand = stands[name]
                assert isinstance(stand, SiteQuantizer | SharedSite)
                vars(stand)["at"] = _keeping(stand.at, kept.append)
                stack.callback(vars(stand).pop, "at")
            yield

    @contextmanager
    def leading(self, integer: nn.Module) -> Iterator[None]:
        """Put the values that were kept in the place of the integer model's, and compare both."""
        with ExitStack() as stack:
            for layer in integer_layers(integer).values():
                grid = layer.output_on_grid
                if layer.spec.output_site and grid is not None:
                    put = self._put(layer.spec.output_site, grid.step)
                    handle = layer.register_forward_hook(lambda _m, _a, made, put=put: put(made))
                    stack.callback(handle.remove)
            for join in integer_sites(integer).values():
                if join.spec.output is not None:
                    put = self._put(join.spec.output.site, join.output.step)
                    vars(join)["at"] = _replacing(join.at, put)
                    stack.callback(vars(join).pop, "at")
            yield

    def fault(self, known: Mapping[str, float]) -> str:
        """Return the first site at which the models differ in more than single values, or "".

        Args:
            known: site -> share of its values that are rounded differently on the same inputs.
        """
        for site, share in self.apart.items():
            if share > known.get(site, 0.0) + FEW:
                return site
        return ""

    def _put(self, site: str, step: Tensor) -> Callable[[object], object]:
        waiting = iter(list(self.values.get(site, ())))

        def put(made: object) -> object:
            value, share = next(waiting, None), 1.0
            same = isinstance(made, Tensor) and value is not None and value.shape == made.shape
            if same and value is not None and isinstance(made, Tensor):
                off = (made - value).abs() > step / 2
                share = float(off.float().mean()) if off.numel() else 0.0
            self.apart[site] = max(share, self.apart.get(site, 0.0))
            return value if same else made

        return put


def _keeping(at: Callable[..., object], keep: Callable[[Tensor], None]) -> Callable[..., object]:
    """Return what stands at a site, which also keeps what it gives."""

    @wraps(at)
    def kept(*args: object, **kwargs: object) -> object:
        made = at(*args, **kwargs)
        if isinstance(made, Tensor):
            keep(made.clone())
        return made

    return kept


def _replacing(at: Callable[..., object], put: Callable[[object], object]) -> Callable[..., object]:
    """Return what stands at a site, and gives something else."""

    @wraps(at)
    def replaced(*args: object, **kwargs: object) -> object:
        return put(at(*args, **kwargs))

    return replaced
