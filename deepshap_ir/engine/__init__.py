"""From a static graph to attributions: emitter, walker, programs, evaluator."""
