"""Triton kernels, one file per operator family; installed as `finpercep.kernels`."""
