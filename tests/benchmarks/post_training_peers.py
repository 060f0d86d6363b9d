"""Post-training quantization by other libraries, each called as its own documentation calls it.

A peer is a function of a float network, of the bits of weights and of activations, and of batches
of calibration images [B, C, H, W] that returns what gives logits. First layer and head get 8 bits
and their inputs, too. `CannotError` says that a peer has no way to do so that its users would go. A
library is imported by its own peer only. To add one, write a function and its row in PEERS.
"""

import platform
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]
ENDS = ("conv1", "linear")  # with 8 bits, whatever the widths are


class CannotError(Exception):
    """A peer cannot do these widths."""


def bits_at_ends(bits: int) -> Any:
    """Return Brevitas' way to say 8 bits for the first layer and the head, else some bits."""

    def of(module: nn.Module) -> int:
        first = isinstance(module, nn.Conv2d) and module.in_channels == 3
        return 8 if first or isinstance(module, nn.Linear) else bits

    return import_module("brevitas.inject").value(of)


@torch.no_grad()
def brevitas(
    network: nn.Module,
    weights: int,
    activations: int,
    images: list[Tensor],
    *,
    signs: str = "asym",
    percentile: float | None = None,
    equalized: int = 20,
    act_order: bool = True,
) -> Logits:
    """Return Brevitas' layerwise quantization with GPTQ and bias correction.

    The stages are those of its `ptq_evaluate.py`, which itself takes a last layer for one only
    where it has 1,000 outputs. The settings are the best of those of its own benchmark on training
    images that did not calibrate; `percentile` None: 99.999, its default, 99.9 below 8 bits.
    """
    if percentile is None:
        percentile = 99.999 if activations == 8 else 99.9
    graph = import_module("brevitas.graph.quantize")
    ptq = import_module("brevitas_examples.imagenet_classification.ptq.ptq_common")
    network = graph.preprocess_for_quantize(
        network, equalize_iters=equalized, equalize_merge_bias=True, merge_bn=True
    )
    _, layers, _, _ = ptq.create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=32,
        weight_bit_width=bits_at_ends(weights),
        weight_param_method="stats",
        weight_scale_type="float_scale",
        weight_quant_type="sym",
        weight_quant_granularity="per_channel",
        weight_narrow_range=False,
        weight_quant_format="int",
        act_quant_format="int",
        act_bit_width=bits_at_ends(activations),
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method="stats",
        act_quant_type=signs,
        act_quant_granularity="per_tensor",
        act_quant_percentile=percentile,
    )
    model = graph.layerwise_quantize(network, compute_layer_map=layers).eval()
    model(images[0])  # sets the scales of its weights
    batches = [(x, None) for x in images]
    ptq.calibrate(batches, model)
    ptq.apply_gptq(batches, model, act_order=act_order, create_weight_orig=True)
    ptq.apply_bias_correction(batches, model)
    return model.eval()


def torchao(network: nn.Module, weights: int, activations: int, images: list[Tensor]) -> Logits:
    """Return torchao's pt2e export quantization, by the quantizer that it has for x86.

    Its settings hold the least and the greatest code; those of the ends are its defaults.
    """
    pt2e = import_module("torchao.quantization.pt2e")
    stages = import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    specification = import_module("torchao.quantization.pt2e.quantizer").QuantizationSpec
    of_inputs = specification(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2**activations - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=pt2e.HistogramObserver.with_args(eps=2**-12),
    )
    of_weights = specification(
        dtype=torch.int8,
        quant_min=-(2 ** (weights - 1)),
        quant_max=2 ** (weights - 1) - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=pt2e.PerChannelMinMaxObserver.with_args(eps=2**-12),
    )
    few = x86.QuantizationConfig(of_inputs, of_inputs, of_weights, None, False)
    quantizer = x86.X86InductorQuantizer().set_global(few)
    for name in ENDS:
        quantizer.set_module_name_qconfig(name, x86.get_default_x86_inductor_quantization_config())
    prepared = stages.prepare_pt2e(exported(network, images[0]), quantizer)
    for x in images:
        prepared(x)
    return stages.convert_pt2e(prepared)


def exported(network: nn.Module, example: Tensor) -> Any:
    """Return the network as torch exports it, for batches of any size."""
    sizes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(network, (example,), dynamic_shapes=sizes).module()


def nncf(network: nn.Module, weights: int, activations: int, images: list[Tensor]) -> Logits:
    """Return NNCF's post-training quantization with its accurate bias correction.

    It reads images one by one, as its guide advises. Other bits than 8 it has for all layers alike.
    """
    if (weights, activations) != (8, 8):
        raise CannotError
    library = import_module("nncf")
    ones = [x[None] for batch in images for x in batch]
    return library.quantize(
        exported(network, images[0]),
        library.Dataset(ones),
        subset_size=len(ones),
        fast_bias_correction=False,
    )


class Reader:
    """What quantize_static reads calibration images from."""

    def __init__(self, images: list[Tensor]) -> None:
        self.left: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last."""
        batch = next(self.left, None)
        return None if batch is None else {"images": batch.numpy()}


def has_vnni() -> bool:
    """Return whether this processor adds four products of bytes without saturation."""
    known = Path("/proc/cpuinfo")
    return platform.machine() != "x86_64" or (known.exists() and "vnni" in known.read_text())


def in_onnxruntime(path: Path) -> Logits:
    """Return what a file gives in ONNX Runtime on this processor, one thread."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def quantize_static(
    network: nn.Module, weights: int, activations: int, images: list[Tensor]
) -> Logits:
    """Return the file of ONNX Runtime's quantize_static, in ONNX Runtime on this processor.

    As its docstring says for x86: QDQ, unsigned activations, signed weights per channel, of 7 bits
    where there is no VNNI. It has weights of 8 and of 4 bits.
    """
    if activations != 8 or weights not in (4, 8):
        raise CannotError
    library = import_module("onnxruntime.quantization")
    kind, few = library.QuantType, weights == 4
    with TemporaryDirectory() as folder:
        plain, ready, made = (Path(folder) / f"{name}.onnx" for name in ("float", "ready", "made"))
        sizes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            network, (images[0],), plain, input_names=["images"], dynamic_shapes=sizes, dynamo=True
        )
        library.shape_inference.quant_pre_process(plain, ready)
        ends = {
            initializer: [{"quant_type": kind.QInt8, "axis": 0}]
            for initializer in weights_of_ends(ready)
        }
        library.quantize_static(
            ready,
            made,
            Reader(images),
            quant_format=library.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not few and not has_vnni(),
            activation_type=kind.QUInt8,
            weight_type=kind.QInt4 if few else kind.QInt8,
            extra_options={"TensorQuantOverrides": ends} if few else None,
        )
        return in_onnxruntime(made)


def weights_of_ends(path: Path) -> list[str]:
    """Return the names of the weights of the first and the last layer of a file."""
    nodes = import_module("onnx").load(path).graph.node
    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [layers[0].input[1], layers[-1].input[1]]


def aimet(
    network: nn.Module,
    weights: int,
    activations: int,
    images: list[Tensor],
    *,
    iterations: int | None = None,
) -> Logits:
    """Return AIMET's simulation after AdaRound, with batch norms folded and scales per channel.

    `iterations` for each layer; its default is 15,000 below 8 bits of weights, else 10,000.
    """
    rounding = import_module("aimet_torch.adaround.adaround_weight")
    simulation = import_module("aimet_torch.quantsim").QuantizationSimModel
    enhanced = import_module("aimet_torch.common.defs").QuantScheme.post_training_tf_enhanced
    paths = import_module("aimet_torch.common.quantsim_config.utils")
    example, config = images[0][:1], paths.get_path_for_per_channel_config()
    model = import_module("aimet_torch.model_preparer").prepare_model(network).eval()
    norms = import_module("aimet_torch.batch_norm_fold")
    norms.fold_all_batch_norms(model, tuple(example.shape))
    given = rounding.AdaroundParameters(
        images, len(images), iterations, forward_fn=lambda found, x: found(x)
    )
    with TemporaryDirectory() as folder:
        model = rounding.Adaround.apply_adaround(
            model,
            example,
            given,
            folder,
            "weights",
            default_param_bw=weights,
            param_bw_override_list=[(model.get_submodule(name), 8) for name in ENDS],
            default_quant_scheme=enhanced,
            default_config_file=config,
        )
        made = simulation(
            model,
            example,
            enhanced,
            default_param_bw=weights,
            default_output_bw=activations,
            config_file=config,
        )
        modules = dict(made.model.named_modules())
        for name in ENDS:
            modules[name].param_quantizers["weight"].bitwidth = 8
        modules["conv1"].input_quantizers[0].bitwidth = 8
        for name in ("module_adaptive_avg_pool2d", "linear"):  # what the head reads and gives
            modules[name].output_quantizers[0].bitwidth = 8
        made.set_and_freeze_param_encodings(str(Path(folder) / "weights.encodings"))
    made.compute_encodings(lambda found: [found(x) for x in images])
    return made.model


Peer = Callable[..., Logits]
PEERS: dict[str, Peer] = {
    "brevitas": brevitas,
    "quantize_static": quantize_static,
    "torchao": torchao,
    "nncf": nncf,
    "aimet": aimet,
}
PACKAGES = {"quantize_static": "onnxruntime", "aimet": "aimet-torch"}


def version_of(peer: str) -> str:
    """Return the version of a peer's package."""
    return version(PACKAGES.get(peer, peer))
