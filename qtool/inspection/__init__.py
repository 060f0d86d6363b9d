"""What a file, a run or an estimator is.

inspect: recipes, runs and integer models. onnx: ONNX files. estimators: all of them, with pictures.
weights: files of them. repaired: an ONNX file that was mended. run_report: what the page on a run
is made of; layer_figures: the codes of its layers.
"""
