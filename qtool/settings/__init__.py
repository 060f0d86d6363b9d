"""What a recipe may say of quantization; it knows no layers.

section: strict sections. choices: estimators, ranges and schedules as a recipe chooses them.
tensors: weights, or the inputs of layers. quantization: the whole section, with overrides.
user_estimators: a user's own, from a file beside the recipe. user_code: which files may run.
"""
