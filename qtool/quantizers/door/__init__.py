"""What may be quantized, and what is known of a model before and after it is.

entry: models and examples that nothing right can be made of, refused by `prepare`. modes: what a
float model does in evaluation and in training mode; deployed: what is known of a prepared model,
and what of it inference runs. finite: numbers that no computation survives. given: scales that
leave nothing of their values.
"""
