"""Records of a run (its folder, TensorBoard events) and what it displays while it trains (progress, summary)."""
