"""A first recipe: one that ships, or one that is made for a folder of images.

shipped: the recipes of the package, by name. looked: what a folder of images holds. chosen: the
network and the training that suit it. written: all of it as a recipe with comments.
"""
