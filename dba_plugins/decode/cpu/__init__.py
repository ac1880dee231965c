"""Decode on the CPU with kernels compiled for the machine at hand: LLVM IR, machine code by llvmlite.

plugin, backend      what the registry and the attention see
spec, layout         what a kernel is compiled for, and how a head's values lie in memory
emit, convert        vector code: arithmetic, and one file's worth of formats
scores, softmax, values, tile, work, merge   the kernel, inside out
encode, writer       the quantizing append
compiler, threads    machine code with a cache on disk, and who runs it
"""
