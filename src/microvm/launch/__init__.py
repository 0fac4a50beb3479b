"""From a runner directory to a running VMM, its helpers, and its end."""
