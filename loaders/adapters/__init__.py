"""What other codebases need of a loader: their forms of a batch, and their base classes.

`forms` imports no codebase. The other modules extend one codebase each and import it; nothing here
imports them.
"""
