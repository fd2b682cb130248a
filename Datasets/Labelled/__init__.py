"""Labelled data sets by name, `task=classify/<name>`, or of the user's own: found or fetched, read, checked."""
from Datasets.Labelled.Source import Source, load, names

__all__ = ['Source', 'load', 'names']
