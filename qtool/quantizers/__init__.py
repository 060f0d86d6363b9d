"""Modules that hold scales: fake quantizers and the layers that use them.

prepare: float model -> fake-quantized model. door: what it refuses, and what is known of a model.
places: where the quantizers of activations stand. plan: what became of each layer, plan_sites: of
each value. layers, relu, sites: what is fake-quantized; layer: what layers share, computed: those
that compute their weight. fake_quantize: what all quantizers share, and state: what checkpoints
hold of it; weights, activations: those of each side; observers: what watches values, by samples of
them. rounding_function: the rounding and its gradient, scale_gradient: that of its scale, softness:
that of an estimator's own shape; interval: which sizes of a weight are rounded; cpu_backward: both
on a CPU; kernels: the same, compiled. oscillation: weights that flip. control: what moves all
quantizers of a model; steps: which pass begins a training step, by what moved says of parameters;
reach: learned scales stay near their weights. calibrate: scales from data. attention: layers that
models use past them, and are made to call. health: what is dead or wasted, measures: what codes are
like. saturation: fewer steps for weights that could saturate.
"""
