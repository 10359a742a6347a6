"""What stands between DVC and the notebooks."""
