"""Experiments of the notebooks that need a test, or a process of their own."""
