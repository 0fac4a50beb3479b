"""Projects: references, loading, validation, lock, runners."""
