"""What a text says, with no model: normal forms, languages, refusals, and what is shown of it."""
