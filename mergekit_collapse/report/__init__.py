"""The record that a gated recipe ends in, as JSON, Markdown and text."""
