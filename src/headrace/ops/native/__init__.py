"""The native core as operators: thin wrappers that pass pointers, sizes and strides."""
