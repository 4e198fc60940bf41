"""Mathematics as plain functions that can be read beside the papers: tensors in, tensors out.

They know nothing of TensorDicts, networks and devices; what is random takes its random numbers as an argument.
"""
