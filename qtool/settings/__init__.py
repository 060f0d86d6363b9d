"""What a recipe may say of quantization; it knows no layers.

section: strict sections. choices: estimators, ranges and schedules as a recipe chooses them.
tensors: weights, or the inputs of layers. quantization: the whole section, with overrides.
budget: what widths may cost together. user_parts: the user's own models, losses and others, by file
or module; user_parameters: what a recipe may set of them; user_code: which may run; user_files,
user_modules: how; user_estimators: those of gradients.
"""
