"""Sources: each module makes a manifest of data in one layout. docs/contributing.md says how to add one."""
