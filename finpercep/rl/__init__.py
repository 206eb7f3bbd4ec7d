"""Reinforcement learning of super-resolution generators against a reward that grows."""
