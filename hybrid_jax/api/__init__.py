"""The public interface (see `hybrid_jax`)."""
