"""Machine code for this processor, written as LLVM's IR and compiled once: what kernels of any kind share."""

#: Float32 values of a vector.
LANES = 8
