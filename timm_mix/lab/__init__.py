"""What studies of the methods need: benchmark cases, pictures, suites of runs, releases of weights."""
