"""An interpreter of NVIDIA's machine code, SASS, as far as the kernels of plugins/cuda use it.

It executes what nvcc made of them, without a GPU, and counts.

- :mod:`sass.compiling` and :mod:`sass.launching`: from a unit of plugins/cuda to its machine code and the very launch
  that the host's code asks for.
- :mod:`sass.listing` and :mod:`sass.cubin` read what ``cuobjdump -sass`` prints, and a kernel's parameters.
- :mod:`sass.machine` runs blocks: all their warps at once, as arrays (warps, 32). :mod:`sass.warps` is their state,
  :mod:`sass.operands` how instructions name it, and the instructions stand by kind in :mod:`sass.integers`,
  :mod:`sass.predicates`, :mod:`sass.floats`, :mod:`sass.exchange`, :mod:`sass.control`, :mod:`sass.accesses`,
  :mod:`sass.matrices` and :mod:`sass.hopper`.
- :mod:`sass.memory`: global and shared memory, with sectors and wavefronts counted.

Results are those of the PTX manual's instructions that the assembler chose the machine's for; tests compare each. Time
is not modelled: :mod:`sass.bounds` has what counts allow to say, by each resource's rate.

Not modelled: rounding inside the tensor cores (sums are in float64, rounded once), the last bit of the special
functions, texture, atomics and local memory. An instruction or modifier that is not known is an error when it is
executed.
"""
