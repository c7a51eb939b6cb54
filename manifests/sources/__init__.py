"""Sources: each module makes a manifest of data in one layout. CONTRIBUTING.md says how to add one."""
