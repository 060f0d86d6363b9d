"""What a file, a run or an estimator is.

inspect: recipes, runs and integer models. onnx: ONNX files. estimators: all of them, with pictures.
"""
