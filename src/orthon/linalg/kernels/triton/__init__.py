"""Triton kernels, each with the function that launches it. Importing one of them imports triton."""
