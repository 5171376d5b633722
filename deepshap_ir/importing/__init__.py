"""From a model as it is found and background rows to the static graph of one example."""
