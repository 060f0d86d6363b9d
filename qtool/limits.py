"""Known limits: what of a network is refused, left float or not folded, in whose words.

Whoever refuses a network, leaves a layer float or does not fold a norm says so in a sentence of
this file, so that the table of known limits, which is printed from it, cannot be out of date. To
add one, write it here, and in tests/test_limits.py a network that meets it.
"""

from qtool.limit import Limit


def _refused(says: str, do: str = "") -> Limit:
    return Limit("refused", says, do)


def _left_float(says: str, do: str = "") -> Limit:
    return Limit("left float", says, do)


def _not_folded(says: str, do: str = "") -> Limit:
    return Limit("not folded", says, do)


# What is no float model, or not one that can be copied and changed
NOT_A_MODULE = _refused("prepare takes a torch.nn.Module, not {given}")
WRAPPED = _refused(
    "{module} is a {type}, which runs a model that stands inside it",
    "prepare the model inside, and wrap what prepare returns",
)
SCRIPTED = _refused(
    "{module} is a torch.jit module ({type}), whose layers cannot be changed",
    "prepare the model that it was made of",
)
COMPILED = _refused(
    "{module} was compiled (torch.compile), so that its layers cannot be changed",
    "prepare the model first, then compile what prepare returns",
)
PREPARED_ALREADY = _refused("this model is prepared already", "prepare the float one")
PREPARED_INSIDE = _refused(
    "{module} comes from {maker} already",
    "put the model together from float parts, and prepare it as a whole",
)
INTEGER_ALREADY = _refused(
    "this is an integer model, from qtool.convert", "prepare the float one, or export this one"
)
TAKEN_ATTRIBUTE = _refused(
    "the model has an attribute `qtool` of its own, where prepare keeps what it knows",
    "give that attribute another name",
)
NOT_COPIED = _refused(
    "prepare works on a copy, and {part} cannot be copied ({error})",
    "take it off the model while it is prepared",
)
FORWARD_REPLACED = _refused(
    "{module}: its forward was replaced by a function that holds the model, so that a copy would "
    "run the original's layers",
    "write a subclass with that forward, or put it into a module around the model",
)
QUANTIZED_BY_TORCH = _refused(
    "{module} is a {type}, quantized by other means", "prepare the float model"
)

# Where parameters are, and of what kind
LAZY = _refused(
    "{layer} is lazy: its shape is not known before the first forward pass",
    "run the model once before prepare, or give prepare an example",
)
ON_META = _refused(
    "{tensor} is on the meta device, without values",
    "load the weights first (model.to_empty(device=...), then load_state_dict)",
)
TWO_DEVICES = _refused(
    "the model is spread over devices: {first} is on {device}, {second} on {other}",
    "put the whole model on one device (model.to(device))",
)
DTYPE = _refused(
    "{layer}: its {tensor} is {dtype}, and qtool quantizes float32",
    "call model.float(), or leave the layer float by an override "
    "{{match: {layer}, weights: null, activations: null}}",
)
LAYOUT = _refused(
    "{layer}: its {tensor} is {layout}, and qtool quantizes dense tensors",
    "call .to_dense() on it, or leave the layer float by an override "
    "{{match: {layer}, weights: null, activations: null}}",
)
TENSOR_SUBCLASS = _refused(
    "{layer}: its {tensor} is a {type}, and qtool quantizes plain parameters",
    "prepare the model before it is sharded, quantized or wrapped by other means",
)
HOOKED = _refused(
    "{layer}: its {tensor} is made anew in each pass; call {remove} before prepare, or leave it "
    "float by an override {{match: {layer}, weights: null, activations: null}}",
)
HOOKED_NORM = _refused(
    "{layer}: its {tensor} is made anew in each pass, so that the norm cannot be folded",
    "call {remove} before prepare",
)

# Calls of functions in blocks, at which modules stand
OTHER_PATH = _refused(
    "{block} takes another path than in the passes that its sites were found in: it called "
    "{function} {times} times, not {recorded}",
    "leave the layers behind it float, or put what varies into a block of its own",
)
TAKEN_SITES = _refused(
    "{block} has an attribute `sites` of its own, where qtool puts what stands at its calls",
    "give that attribute another name",
)
NO_SUBCLASS = _refused(
    "{module}: its calls cannot be counted, for no subclass can be made of {type} ({error})",
    "use another class, where the model is yours",
)

# What there is to quantize, and the example
NOTHING_TO_QUANTIZE = _refused(
    "there is nothing to quantize: {why}",
    "qtool quantizes the convolutions of torch.nn, transposed ones, too, and torch.nn.Linear",
)
FAILS = _refused("the model fails on the example: {error}")
EMPTY_EXAMPLE = _refused("the example is empty: {input} is {shape}", "give a batch of real inputs")
NO_OUTPUT = _refused(
    "the model returns {given}, in which there is no tensor",
    "return tensors, alone or in tuples, lists, dicts or dataclasses",
)
ZERO_EXAMPLE = _refused(
    "the example is all zeros, which no activation scale can be taken from",
    "give a batch of real inputs",
)

# What is loaded
OTHER_PLACE = _refused(
    "this state_dict was made with place: {given}, and the model was prepared with place: {own}",
    "prepare the model with quantization.activations.place: {given}",
)

# What a runtime makes of a file
NOT_EXPRESSED = _refused(
    "torch.onnx cannot express the model: {error}",
    "write that part with operators that ONNX has and without branches on values",
)
QUANTIZED_ANEW = _refused(
    "{layer}: {runtime} quantizes the float {tensor} anew, to codes of its own",
    "quantize the layer's weights, or leave its input float",
)
OTHER_WEIGHTS = _refused(
    "{layer}: {runtime} does not compute with the weights of the integer model, so the file would "
    "not be what was proven"
)

# Layers that stay float
CHOSEN = _left_float("{where} leaves weights and input float")
SUBCLASS = _left_float(
    "{type} is a subclass that may differ", "use the class itself where it computes the same"
)
COMPUTED_WEIGHT = _left_float(
    "{type} computes the weight that it gives to {function} anew in each pass",
    "use torch's own class with a weight that was computed once, where training can do without",
)
OTHER_ATTENTION = _left_float(
    "{type} may compute another attention than torch.nn.MultiheadAttention",
    "use that class itself where it computes the same",
)
NEITHER = _left_float("{type} is neither a convolution nor Linear")
BYPASSED = _left_float(
    "the model uses its weight without calling it", "call the layer, where the model is yours"
)
FLOAT_IN_STATE = _left_float(
    "the state that was loaded has it float, from before layers of its kind were quantized",
    "train it anew",
)
CONSTANT_INPUT = _left_float(
    "what it reads is made of parameters and buffers alone, and so is a constant of the file"
)
UNCALLED = _left_float(
    "no forward pass in evaluation mode calls it", "nothing: only training needs it"
)
BY_FUNCTIONS = _left_float(
    "{type} uses its own {names} by functions",
    "use a convolution of torch.nn or torch.nn.Linear, where the model is yours",
)

# Values that stay float, and operators of them, with place: every_value; a reason is what stands
# behind "layer1.0:add0 stays float:", or what is said of the value that is made there
JOIN_CHOSEN = _left_float("{where} leaves what it makes float", "remove that override")
JOIN_LOST = _left_float(
    "it writes to a tensor in place, and the model goes on with that tensor, not with what the "
    "call returns",
    "nothing in the recipe: write x = x.add_(y), not x.add_(y), where the model is yours",
)
JOIN_OF_CONSTANT = _left_float(
    "it takes a number or a parameter, which is on no grid",
    "nothing: such sums and products are float",
)
JOIN_OF_FLOAT = _left_float(
    "it reads {operand}, which is float", "quantize what makes {operand}, if it is a layer"
)
JOIN_OF_UNNAMED = _left_float(
    "it reads what {name} makes, which no quantizer can stand behind",
    "nothing in the recipe: qtool does not know that function",
)
JOIN_OF_DIFFERENT = _left_float(
    "{block} is called several times, and its operands come from other places each time",
    "nothing in the recipe: give each call a block of its own, where the model is yours",
)
JOIN_UNREAD = _left_float(
    "no quantized layer reads what it makes, nor anything else in integers",
    "nothing, where the network ends here; else quantize the layers behind it",
)
POOL_DIVISOR = _left_float(
    "it does not divide by the number of pixels in a window, at the edges or everywhere",
    "nothing in the recipe: use count_include_pad: True, ceil_mode: False and no divisor_override, "
    "where the model is yours",
)
POOL_UNEVEN = _left_float(
    "its windows are not all of one size",
    "nothing in the recipe: give images of a size that the output size divides",
)
HARDSWISH_SHARED = _left_float(
    "{site}, which it reads, has a grid that others need otherwise, and a hardswish fixes it",
    "nothing in the recipe: give it a convolution, sum or pooling that nothing else reads",
)
NORM_OF_STATISTICS = _left_float(
    "{norm} is no gain and shift of the channels of an image",
    "use a batch norm of images with statistics of its own, where there is a choice",
)
READERS_DISAGREE = _refused(
    "{layer} and {other} read one value, which {site} makes, and want different things ({how})",
    "give both the same by overrides, or say what the value is to have: {{match: {site}, "
    "activations: ...}}",
)
GROUP_DISAGREES = _refused(
    "{site} and {other} are concatenated, so that they share a grid, and overrides want different "
    "things of them ({how})",
    "give both the same, or an override to one of them alone",
)
FIXED_GRID = _refused(
    "{site} has a grid of 8 bits that its function fixes, and {where} wants {bits}",
    "leave its bits out, or leave the value float: activations: null",
)

# Norms that stay beside the layer that they read
CALLED_OFTEN = _not_folded("it, or {layer} before it, is called {times} times in a pass")
READS_MORE = _not_folded("it reads more than the output of {layer}")
READ_BY_OTHERS = _not_folded("others read the output of {layer}, too")
STATISTICS_OF_INPUT = _not_folded(
    "it uses the statistics of what it is given, in evaluation mode, too",
    "use track_running_stats: True",
)
OTHER_AXIS = _not_folded(
    "its channels are not those of {layer}, along another axis of {shape}",
    "transpose before the layer, not behind it",
)
NOT_AFFINE = _not_folded(
    "in evaluation mode {type} is not a gain and a shift for each channel of {layer}",
    "use a batch norm, where there is a choice",
)
BEHIND_NO_LAYER = _not_folded("what it reads is not the output of a quantized layer")
NORM_UNCALLED = _not_folded("no forward pass in evaluation mode calls this norm")
NORM_FUNCTION = _not_folded(
    "a function normalizes the output of {layer}", "call a module, as torch.nn.BatchNorm2d"
)
NORM_READ = _not_folded("the model reads its parameters without calling it")
FLOAT_LAYER = _not_folded("the weight of {layer} is float")
NEGATIVE_GAMMA = _not_folded(
    "{layer} holds {code} in a channel whose batch norm has a negative gamma, which a full grid "
    "cannot negate",
    "use grid: narrow",
)
NO_LONGER_AFFINE = _not_folded("it is no longer a gain and a shift for each channel of {layer}")
NO_LONGER_HARDSWISH = _left_float("at {site}, hardsigmoid is no clip of codes now: s is not 3 / z")
SHIFT_TOO_LARGE = _left_float("its shift does not fit into int32 at the scale of its products")

LIMITS = {name: limit for name, limit in list(globals().items()) if isinstance(limit, Limit)}
