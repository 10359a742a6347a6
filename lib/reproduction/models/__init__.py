"""The models of the paper, a module for each experiment."""
