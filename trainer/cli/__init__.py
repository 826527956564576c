"""The `inkwash` command line: flags made from the schema, events shown as text; no logic of its own."""
