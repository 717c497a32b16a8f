"""Suites: recipes x seeds, run, compared and put into one table."""
