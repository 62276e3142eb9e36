"""The one brain: hears notices, looks at the truth, sets absolute numbers."""
