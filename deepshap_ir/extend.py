"""All that a rule imports.

```python
from deepshap_ir.extend import rule

@rule("my.domain::Square")
def square(ctx, m):
    \"\"\"``(x^2 - x0^2) / (x - x0) = x + x0``.\"\"\"
    return m[0] * (ctx.x() + ctx.x0())
```

A rule gets the node's context and one multiplier per node output (None where the output is not used), and returns one
multiplier per node input, None where the input does not vary; or just the one multiplier where one input varies. Shapes
are those of one example. A multiplier may have the shape of the input or the one that it is broadcast to.
"""

from deepshap_ir.engine.context import Context, Expansion, Parts
from deepshap_ir.engine.declared import takes_batches
from deepshap_ir.engine.emitter import Emitter, as_graph
from deepshap_ir.engine.registry import RuleSet, expand, rule
from deepshap_ir.engine.resizing import resized_axes
from deepshap_ir.engine.rule_sets import named_rules
from deepshap_ir.engine.sliding import Windows
from deepshap_ir.engine.value import Value
from deepshap_ir.errors import RuleError, UnsupportedOperatorError
from deepshap_ir.graph import Array, Graph, Node

__all__ = [
    "Array",
    "Context",
    "Emitter",
    "Expansion",
    "Graph",
    "Node",
    "Parts",
    "RuleError",
    "RuleSet",
    "UnsupportedOperatorError",
    "Value",
    "Windows",
    "as_graph",
    "expand",
    "named_rules",
    "resized_axes",
    "rule",
    "takes_batches",
]
