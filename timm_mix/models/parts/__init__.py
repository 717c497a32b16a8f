"""The parts of a SplitNet: one after the other, at the same time, or one of them alone."""
