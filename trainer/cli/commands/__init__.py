"""A command a file: `SUMMARY`, `EXAMPLES`, `add_arguments(parser)`, `run(arguments) -> exit code`."""
