"""How a plan is scored: one file per evaluator."""
