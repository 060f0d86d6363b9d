"""A run: begun, locked to its folder, written, resumed, loaded again.

folder: its files. run: what they hold, built. build: what a recipe names. checkpoint: everything
needed to go on. changes: what its weights' codes did.
"""
