"""Interactions and catalogues: raw formats, splits, and the dataset folder."""
