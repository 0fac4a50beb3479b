"""The declared, resolved and planned objects: pure data."""
