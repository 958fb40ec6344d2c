"""A report in the forms that other programs read: all from the one JSON document."""
