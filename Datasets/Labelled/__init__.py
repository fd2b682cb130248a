"""Labelled data sets by name, `task=classify/<name>`, or of the user's own: found or fetched, read, checked, summarised."""
from Datasets.Labelled.Source import Source, load, names
from Datasets.Labelled.Statistics import Statistics, statistics

__all__ = ['Source', 'Statistics', 'load', 'names', 'statistics']
