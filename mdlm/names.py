"""Names of arrays and operations of a network that code outside the network relies on.

In the tree of parameters the layers are under `STACK`; each array there has the layers along its
first axis. A matrix between hidden states is named `KERNEL`, one with a row for each
token, position or token type `TABLE`. The one that reads the noise level is
under `MODULATION`, the one that makes logits under `HEAD`, the table of embeddings under `EMBED`.
Optimizers choose the update of an array by these names, and plans find the arrays that are
gathered.

Each operation is traced in the scope (`jax.named_scope`) of its part of the step, one of `PARTS`.
Profiles group time by these scopes.
"""

STACK = "blocks"
KERNEL = "kernel"
TABLE = "table"
MODULATION = "modulation"
HEAD = "head"
EMBED = "embed"

PARTS = ("noise", "embed", "attention", "mlp", HEAD, "optimizer", "ema")
