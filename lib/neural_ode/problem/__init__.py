"""The user's problem, checked and laid out flat for the solvers."""
