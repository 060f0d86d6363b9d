"""Loaders: named data sets, batches and augmentation.

datasets: those a recipe chooses from, and where to add one; arrays, image_folder, image_table,
synthetic: more of them; user_data: the user's own. layouts, tables: how folders of images are laid
out, and what CSVs say. root: the folder they lie in, and what may be read there. sources: what a
data set hands over, and what is known without its data; class_names: what classes are called.
loaders: a data set in, batches out; batches: what every loader gives; tensor_batches: from memory;
file_batches: from image files; image_files: one of those; worker_life: processes that read them end
with the reader. augmentations, user_transforms: what varies an image; mixing: what mixes those of a
batch. bad_files: what cannot be read, named or left out. holdout: training images that judge each
epoch. fingerprint: what data were, and what of them has changed. official: data sets that
torchvision knows.
"""
