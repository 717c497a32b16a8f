"""The cases of benchmark.py, one file per theme; a case yields its rows."""
