"""Pictures before they are tensors: how files are decoded, resized and scaled; opens without torch.

preprocess: the rule that validation, prediction and exported files share. files: image files,
decoded, and found in folders. usage: what files say of classes and of that rule.
"""
