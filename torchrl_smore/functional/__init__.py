"""Mathematics as plain functions: tensors in, tensors out."""
