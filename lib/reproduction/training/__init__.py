"""Training that survives being killed, and its record."""
