"""The loops that make steps, and what they keep: settings, times and outputs, events, step records."""
