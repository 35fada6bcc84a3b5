"""The paper's pictures, drawn from the package's own functions (`python -m hybrid_jax.figures`)."""
