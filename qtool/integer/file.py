"""The integer model as a file: codes, scales and biases in safetensors, the rest as metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save
from torch import nn

from qtool.errors import InputError
from qtool.files.json_data import parse_json, typed_json
from qtool.files.reading import intact
from qtool.files.safetensors_data import read_header
from qtool.files.safetensors_digest import write_with_digest
from qtool.graph.calls import count_calls
from qtool.graph.exact import load_model
from qtool.graph.own_norm import without_norm
from qtool.graph.rewritten import rewrite
from qtool.graph.sites.frames import counts_of, install
from qtool.graph.sites.value_graph import Counts
from qtool.graph.swap import keep_state, replace_module
from qtool.images.usage import Usage
from qtool.integer.converted import Converted, converted_state
from qtool.integer.format import MADE_OF, WRITTEN, read_metadata
from qtool.integer.joins import at_site
from qtool.integer.layers import make_integer_layer
from qtool.integer.relu import IntegerReLU
from qtool.tensor_files import read_safetensors

_COUNTS = TypeAdapter(dict[str, list[list[tuple[str, str, int]]]])


def save_integer(
    integer: nn.Module,
    path: Path,
    about: Mapping[str, object],
    usage: Usage | None = None,
    *,
    source: str = "",
) -> None:
    """Write an integer model in one move; the same model gives the same bytes.

    Args:
        integer: from `convert`.
        path: of the file.
        about: what is needed to build the same network again: the recipe and the sizes.
        usage: its classes, and how images are prepared for it.
        source: SHA-256 of the checkpoint, or of the network, that it was made of, if that is known.

    Raises:
        InputError: If it cannot be written there.
    """
    state = converted_state(integer)
    metadata = {
        **WRITTEN,
        "about": json.dumps(about),
        "layers": json.dumps([spec.as_dict() for spec in state.layers]),
        "relus": json.dumps([spec.as_dict() for spec in state.relus]),
        "left_float": json.dumps(state.left_float),
        "notes": json.dumps(state.notes),
        "proof": json.dumps(state.proof and state.proof.to_json()),
        "not_folded": json.dumps(state.not_folded),
        "float_sites": json.dumps(state.float_sites),
        "sites": json.dumps([spec.as_dict() for spec in state.sites]),
        "counts": json.dumps(_written(counts_of(integer))),
        "rewritten": json.dumps(asdict(state.rewritten)),
        **({MADE_OF: source} if source else {}),
        **(usage or Usage()).metadata(),
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in integer.state_dict().items()}
    write_with_digest(path, save(tensors), metadata)


def read_about(path: Path) -> tuple[dict[str, Any], Converted]:
    """Return what an integer model's file says of itself, without its tensors.

    Raises:
        InputError: If the file is missing, not an integer model, or damaged.
    """
    said = read_metadata(path)
    try:
        parts = {key: parse_json(said[key]) for key in ("layers", "left_float", "notes")}
        parts["relus"] = parse_json(said.get("relus", "[]"))
        parts["proof"] = parse_json(said.get("proof", "null"))
        parts["not_folded"] = parse_json(said.get("not_folded", "{}"))
        parts["float_sites"] = parse_json(said.get("float_sites", "{}"))
        parts["sites"] = parse_json(said.get("sites", "[]"))
        parts["rewritten"] = parse_json(said.get("rewritten", "{}"))
        state = TypeAdapter(Converted).validate_python(parts)
        return TypeAdapter(dict[str, Any]).validate_python(parse_json(said["about"])), state
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its metadata is damaged: {reason}; convert again") from error


def read_usage(path: Path) -> Usage:
    """Return what an integer model's file says of classes and images; files of before say nothing.

    Raises:
        InputError: If what it says is damaged.
    """
    with intact(path, "its metadata is damaged"):
        return Usage.of(read_header(path).metadata)


def load_integer(path: Path, float_model: nn.Module) -> nn.Module:
    """Return the integer model of a file, on the CPU.

    Args:
        path: of the file.
        float_model: a float network of the same architecture; it is taken over and changed.

    Raises:
        InputError: If the file is not an integer model, or of another network.
    """
    _, state = read_about(path)
    try:
        counts = _counts_of(path)
        rewrite(float_model, state.rewritten)
        for spec in state.layers:
            source = float_model.get_submodule(spec.name)
            layer = make_integer_layer(spec, source)
            float_model = replace_module(float_model, spec.name, layer)
            if spec.batch_norm is not None:
                float_model = without_norm(float_model, spec.batch_norm)
        for relu in state.relus:
            float_model = replace_module(float_model, relu.name, IntegerReLU(relu))
        count_calls(float_model)
        if state.sites:
            install(float_model, {spec.site: at_site(spec) for spec in state.sites}, counts)
        load_model(float_model, read_safetensors(path))
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its tensors do not fit its network: {reason}") from error
    keep_state(float_model, state)
    return float_model.eval()


def _written(
    counts: Mapping[str, tuple[Counts, ...]],
) -> dict[str, list[list[tuple[str, str, int]]]]:
    """Return what blocks count as plain data: leaf, function and calls of each way."""
    return {
        block: [[(leaf, function, n) for (leaf, function), n in way.items()] for way in ways]
        for block, ways in counts.items()
    }


def _counts_of(path: Path) -> dict[str, tuple[Counts, ...]]:
    """Return what the blocks of a file's model count.

    Raises:
        ValueError: If the file says it in another form.
    """
    said = read_header(path).metadata.get("counts", "{}")
    return {
        block: tuple({(leaf, function): n for leaf, function, n in way} for way in ways)
        for block, ways in typed_json(_COUNTS, said).items()
    }
