"""What a run leaves behind (its folder, TensorBoard events) and what it shows meanwhile (progress, summary)."""
