"""The methods as pure functions, one file per paper; imports torch and numpy only."""
