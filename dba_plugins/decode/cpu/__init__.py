"""Decode on the CPU with kernels compiled for the machine at hand: LLVM IR, machine code by llvmlite.

plugin, backend          what the registry and the attention see
spec                     what a kernel is compiled for, and how a head's values lie in memory
emit                     vector code: arithmetic, and one file's worth of formats
tile, kernel             the kernel, inside out
encode                   the quantizing append
compiler, object_files   machine code, with a cache on disk
"""
