"""Refuse doomed model merges: a MergeKit plugin that measures experts before they are merged."""

__version__ = "0.1.0"
