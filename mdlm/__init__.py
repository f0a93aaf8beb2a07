"""Masked diffusion language models in JAX: pretraining, perplexity, generation."""

from mdlm.version import __version__ as __version__
