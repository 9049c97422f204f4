"""One module per verb of the `gdposr` command: `add_arguments(parser)` and `run(args) -> int`."""
