"""Fine-tuning: a new head on trained weights, and what stays frozen."""
