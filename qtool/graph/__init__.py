"""What one real forward pass tells of a model, and swapping its parts; knows torch and limits.

recording: what a pass told, and the questions that it answers. recorder: makes one, on a tape, with
numbers for values. norms: which of them can be folded, by what they do to channels, see affine.
sites: numbered calls of functions in blocks, and what stands there; module_sites: numbered calls of
modules, by calls, modules that count them. running_modules: which modules run. bypassed: whose
weights are read past their layer; attention, by_function: models made to call such layers, which
rewritten does again; own_norm: and norms that are a part of a module; calling: forwards that run
under a mode. subclasses: what those of layers do. inputs: the form of a model's inputs, which an
example fixes. swap: parts in the place of others, and what is kept on a model. replayed: a
pass once more, from a module on. copies: copies of models that are hard to copy. exact: a state,
loaded with the types and shapes it has.
"""
