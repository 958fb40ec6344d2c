"""Data files that ship with the plugin."""
