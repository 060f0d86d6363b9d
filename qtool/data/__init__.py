"""Loaders: named data sets, batches and augmentation."""
