"""What bench/limits.py measures, one file a group; each gives its rows."""
