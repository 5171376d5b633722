"""One form for a function however it is spelled: patterns of operators joined into one node."""
