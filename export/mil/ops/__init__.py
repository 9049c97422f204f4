"""The operations of MIL, as the reference evaluator computes them."""
