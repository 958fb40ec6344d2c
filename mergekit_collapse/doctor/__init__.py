"""Whether the stock commands obey ``compat:`` blocks here."""
