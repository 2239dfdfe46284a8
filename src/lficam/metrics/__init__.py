"""Measures of classifiers and of maps: tensors in, numbers out."""
