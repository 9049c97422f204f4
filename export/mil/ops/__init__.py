"""The MIL operations, as computed by the reference evaluator."""
