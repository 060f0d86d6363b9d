"""Before the first training: a recipe that ships, one for a folder of images, what one will take.

shipped: the recipes of the package, by name. looked: what a folder of images holds. chosen: the
network and the training that suit it. written: all of it as a recipe with comments. checked: what a
recipe will take: operations, size, memory and time.
"""
