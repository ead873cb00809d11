"""Reading and writing weights and side files."""
