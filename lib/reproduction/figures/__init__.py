"""The look of the figures, and how they are saved."""
