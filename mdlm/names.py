"""Names by which others than the networks know what an array, or an operation, is for.

In the tree of parameters a network has its layers under `STACK`, every array of it with the layers
along the first axis. A matrix between hidden states is a `KERNEL`; the one that reads the noise
level is under `MODULATION`, and the one that makes logits under `HEAD`. Optimizers choose by these
names which update an array gets, and plans find what is gathered.

An operation is traced in the scope (`jax.named_scope`) of its part of the step, one of `PARTS`, by
which a profile groups time.
"""

STACK = "blocks"
KERNEL = "kernel"
MODULATION = "modulation"
HEAD = "head"

PARTS = ("noise", "embed", "attention", "mlp", HEAD, "optimizer", "ema")
