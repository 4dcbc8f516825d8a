"""Studies: optimizers compared at equal budgets, each tuned on validation, with fresh seeds for the test."""
