"""What conversion and export start from, and the files that are made of it.

quantized: a network that is about to be converted. untrained: a recipe's, which is only calibrated;
calibration_folder: by images of a folder. integer: an integer model, converted first where it must
be. export: one file of it, or one for each target.
"""
