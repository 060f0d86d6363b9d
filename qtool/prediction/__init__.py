"""Pictures in, classes and their shares out, of a run, an integer model or an ONNX file.

classifier: what each kind gives. onnx_file: one of them, without torch; integer_model: another.
predict: find pictures, prepare them as the model says, ask it.
"""
