"""The kernels, each with its launch. Importing one imports triton."""
