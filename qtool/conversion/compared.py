"""Each layer, and what stands at each site, beside the form that it has in integers.

Both get the same input, the one that the fake-quantized model really has there: through a whole
network a difference in the last bit can move a value across a rounding threshold, which says
nothing about a layer. What is rounded may be off by one step only where it lies that near to a
threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from qtool.conversion.difference import OF_JOINS, difference_of, room_of, share_off
from qtool.conversion.parts import GATE_SLOPE
from qtool.conversion.standing import OWN_CALL
from qtool.errors import ConversionError
from qtool.graph.inputs import tensors_in
from qtool.graph.sites.frames import call_sites_of, counts_of, install, sites_of
from qtool.graph.sites.running import apart
from qtool.integer.at_site import Args, AtSite, Function
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.integer.site_specs import SiteGrid
from qtool.numerics.grid import Kind
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.sites import SharedSite, SiteQuantizer


@dataclass(frozen=True)
class _Made:
    """What the integer form of a layer made of an input.

    Attributes:
        layer: the integer form, as the call has it.
        x: the input.
        real: the output before it is rounded.
        output: as the layer returns it.
    """

    layer: IntegerLayer
    x: Tensor
    real: Tensor
    output: Tensor


@dataclass(frozen=True)
class _AtReference:
    """What a site of the fake-quantized model rounds, and what it makes of it."""

    raw: Tensor
    rounded: Tensor


class _Probe(nn.Module):
    """Stands at a site of the fake-quantized model while it is compared."""

    def __init__(self, look: Callable[..., object]) -> None:
        super().__init__()
        self.look = look

    def at(self, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return what the call gives in the fake-quantized model, and look at it."""
        return self.look(function, args, kwargs)


class Compared:
    """Compares layers and sites during passes of the fake-quantized model, as a context.

    Attributes:
        layers: the integer layers.
        rounded: every site where the integer model rounds a value.
        called: layer -> its largest difference, as a share of its largest output.
        off: site -> the largest share of its values that lie a step apart.
    """

    def __init__(self, reference: nn.Module, integer: nn.Module) -> None:
        self.reference, self.layers = reference, integer_layers(integer)
        self.called: dict[str, float] = {}
        self.off: dict[str, float] = {}
        outputs = {layer.spec.output_site: name for name, layer in self.layers.items()}
        self._maker = {site: name for site, name in outputs.items() if site}
        self._joins: dict[str, AtSite] = {}  # site where its result is rounded -> join
        for stand in sites_of(integer).values():
            if isinstance(stand, AtSite) and stand.spec.output is not None:
                self._joins[stand.spec.output.site] = stand
        self.rounded = [*self._maker, *self._joins]
        self._waiting: dict[str, _Made] = {}  # layer -> what it made, until that is compared
        self._inside: dict[str, _AtReference] = {}  # layer -> what was rounded within its call
        self._raw: dict[str, Tensor] = {}  # layer -> its output before it is rounded at its call
        self._of_joins: dict[str, tuple[Tensor, Tensor | float]] = {}
        self._handles: list[RemovableHandle] = []
        self._stood = {site: sites_of(reference)[n] for n, site in call_sites_of(reference).items()}

    def __enter__(self) -> None:
        for name, layer in self.layers.items():
            # each goes before the hooks that are there, and so the second before the first
            hooks = [(name, self._compute(name))]
            if not layer.spec.output_site:
                hooks.insert(0, (layer.spec.batch_norm or name, self._compare(name)))
            for module, hook in hooks:
                found = self.reference.get_submodule(module)
                handle = found.register_forward_hook(hook, with_kwargs=True, prepend=True)
                self._handles.append(handle)
        if self._stood:
            probes = {site: _Probe(self._rounding(str(site))) for site in self._stood}
            for site, join in self._joins.items():
                if join.spec.site not in probes:
                    probes[join.spec.site] = _Probe(self._joining(site))
            install(self.reference, probes, counts_of(self.reference))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        if self._stood:
            install(self.reference, self._stood, counts_of(self.reference))

    def refuse_left_over(self) -> None:
        """Check, after a pass, that every layer was followed by what is folded into it.

        Raises:
            ConversionError: Names the two.
        """
        for name in (*self._waiting, *self._inside):
            raise self._out_of_turn(name)

    def _compute(self, name: str) -> Callable[..., None]:
        layer = self.layers[name]

        def make(given: Tensor, called: IntegerLayer) -> None:
            if name in self._waiting:
                raise self._out_of_turn(name)
            output = called.output(given)  # without hooks
            real = called.real_output(given) if called.spec.output_site else output
            self._waiting[name] = _Made(called, given, real, output)
            if name in self._inside:
                self._compare_rounded(name, self._inside.pop(name))

        def hook(
            module: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            output: Tensor,
        ) -> None:
            called = cast(Callable[..., IntegerLayer], layer.called_with)
            apart(make, [*args, *kwargs.values()][0], apart(called, *args, **kwargs))

        return hook

    def _compare(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, kwargs: object, expected: Tensor) -> None:
            made = self._taken(name)
            expected = self._raw.pop(name, expected)
            share, _ = apart(difference_of, made.layer, expected, made.x, made.output)
            self.called[name] = max(share, self.called.get(name, 0.0))

        return hook

    def _rounding(self, site: str) -> Callable[..., object]:
        """Return what does the work of a site of the fake-quantized model, and compares it."""
        placed = prepared_state(self.reference).placement.sites[site]
        stand = self._stood[placed.site]
        assert isinstance(stand, SiteQuantizer | SharedSite)
        layer, join = self._maker.get(site), self._joins.get(site)
        rectifies = placed.form == "rectified" and placed.site.function in ("relu", "clip")
        gated = layer is not None and self.layers[layer].spec.output_gate

        def look(function: Function, args: Args, kwargs: dict[str, object]) -> object:
            given: object = None
            if join is not None and join.spec.site == placed.site:
                given = join.at(function, *_copied(args, kwargs))
            x = next(tensors_in((args, kwargs)))
            if rectifies or gated:  # what is below it tells more than what it leaves
                raw: object = x
            elif stand.sigmoid is not None:
                raw = x * stand.sigmoid(torch.sigmoid(x))
            else:
                raw = function(*(copied := _copied(args, kwargs))[0], **copied[1])
            rounded = stand.at(function, args, kwargs)
            if not isinstance(raw, Tensor) or not isinstance(rounded, Tensor):
                return rounded
            seen = _AtReference(raw, rounded)
            if layer is None and placed.site.function in OWN_CALL:
                self._raw[placed.site.leaf] = raw
            if layer is not None and placed.site.function in OWN_CALL:
                self._inside[layer] = seen
            elif layer is not None:
                self._compare_rounded(layer, seen)
            elif site in self._of_joins:
                self._compare_join(site, seen, *self._of_joins.pop(site))
            elif join is not None and isinstance(given, Tensor):
                room = room_of(join, *tensors_in((args, kwargs)))
                self._compare_join(site, seen, given, room)
            return rounded

        return look

    def _joining(self, site: str) -> Callable[..., object]:
        """Return what does the work of a call whose result is rounded at another site."""
        join = self._joins[site]

        def look(function: Function, args: Args, kwargs: dict[str, object]) -> object:
            given = join.at(function, *_copied(args, kwargs))
            assert isinstance(given, Tensor)
            self._of_joins[site] = given, room_of(join, *tensors_in((args, kwargs)))
            return function(*args, **kwargs)

        return look

    def _compare_rounded(self, name: str, seen: _AtReference) -> None:
        """Compare what a layer computes, and what it rounds it to."""
        layer, made, spec = self.layers[name], self._taken(name), self.layers[name].spec
        expected = seen.raw
        if spec.output_gate:
            expected = expected / GATE_SLOPE + 0.5
        share, room = difference_of(made.layer, expected, made.x, made.real)
        self.called[name] = max(share, self.called.get(name, 0.0))
        grid, output = layer.output_on_grid, layer.spec.output_grid
        assert grid is not None
        assert spec.output_bits is not None
        ends = SiteGrid(
            spec.output_site,
            spec.output_bits,
            cast(Kind, output),
            spec.output_rounding,
            spec.output_top,
            spec.output_bottom,
        )
        self._take_share(
            ends, share_off(ends, grid, expected, seen.rounded, made.output, room=room)
        )

    def _compare_join(
        self, site: str, seen: _AtReference, given: Tensor, room: Tensor | float
    ) -> None:
        join = self._joins[site]
        assert join.spec.output is not None
        room = room + OF_JOINS * float(seen.raw.abs().max()) if seen.raw.numel() else 0.0
        ends = join.spec.output
        self._take_share(
            ends, share_off(ends, join.output, seen.raw, seen.rounded, given, room=room)
        )

    def _take_share(self, ends: SiteGrid, share: float) -> None:
        self.off[ends.site] = max(share, self.off.get(ends.site, 0.0))

    def _taken(self, name: str) -> _Made:
        if name not in self._waiting:
            raise self._out_of_turn(name)
        return self._waiting.pop(name)

    def _out_of_turn(self, name: str) -> ConversionError:
        spec = self.layers[name].spec
        after = spec.batch_norm or f"what is rounded at {spec.output_site}"
        return ConversionError(
            f"{name}: {after} is folded into it, and on the proof's batches the two are not called "
            f"one after the other each time, as on the first batch; every pass must call them alike"
        )


def _copied(args: Args, kwargs: dict[str, object]) -> tuple[Args, dict[str, object]]:
    """Return arguments that a function in place may overwrite."""
    return cast(
        tuple[Args, dict[str, object]],
        tree_map_only(Tensor, lambda tensor: tensor.clone(), (args, kwargs)),
    )
