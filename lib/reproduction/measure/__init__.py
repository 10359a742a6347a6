"""Measuring memory, and what measurements say."""
