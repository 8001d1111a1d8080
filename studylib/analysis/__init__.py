"""From rows to tables, tests and claims."""
