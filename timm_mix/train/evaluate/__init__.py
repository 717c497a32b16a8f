"""Evaluation of a trained model: its members, ensembles, folded network."""
