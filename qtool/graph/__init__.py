"""What one real forward pass tells of a model, and swapping its parts; knows torch only.

recording: one pass, watched. calls: modules that count their calls. swap: parts in the place of
others, and what is kept on a model.
"""
