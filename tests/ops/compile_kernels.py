"""Compiles the kernels for GPUs that need not be there, and checks how they move memory. Run as a script."""

import re

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from perception.ops import deformable_attention_triton as kernels
from perception.ops.deformable_attention_op import deformable_attention

LEVELS = 2
SIZES = {
    "HEADS": 8, "CHANNELS": 32, "LEVELS": LEVELS, "POINTS": 4, "BLOCK_D": 32, "SLOTS": 2, "HAS_MAPS": True,
}  # fmt: skip


def compile_for(capability, kernel, types, constants):
    """PTX for one GPU; Triton's assembler has turned it into machine code by then."""
    signature = {name: "constexpr" if name.isupper() else types.get(name, "i32") for name in kernel.arg_names}
    signature |= {"shapes": ("i32",) * 3 * LEVELS} if "shapes" in signature else {}
    index = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    aligned = {index[name]: [["tt.divisibility", 16]] for name in types}
    values = {index[name]: value for name, value in (SIZES | constants).items() if name in index}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True}
    )
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


def main():
    for capability, dtype, index in ((80, "fp32", tl.int32), (90, "fp32", tl.int64), (90, "bf16", tl.int32)):
        halves = dict.fromkeys(("value", "weights", "out", "grad_out", "grad_weights"), f"*{dtype}")
        floats = dict.fromkeys(("locations", "grad_locations", "grad_value"), "*fp32")
        types = {**halves, **floats, "order": "*i64", "starts": "*i64", "map_idx": "*i64"}

        def build(kernel, capability=capability, types=types, **constants):
            present = {name: kind for name, kind in types.items() if name in kernel.arg_names}
            return compile_for(capability, kernel, present, constants)

        forward = build(kernels.forward_kernel, BLOCK_Q=16, INDEX=index)
        # Four corners per level, each by 16 bytes (fp32) or 8 (bf16, with 4 channels per thread).
        wide = r"ld\.global\.v4\.b32" if dtype == "fp32" else r"ld\.global\.v2\.b32"
        assert len(re.findall(wide, forward)) >= 4 * LEVELS, (capability, dtype)
        backward = build(
            kernels.backward_kernel, BLOCK_Q=16, INDEX=index, NEEDS_VALUE=True, NEEDS_SAMPLING=True
        )
        wide = r"(?:red|atom)\.global\S*\.v4\.f32" if capability >= 90 else r"(?:red|atom)\.global\S*\.f32"
        assert len(re.findall(wide, backward)) >= 4 * LEVELS, (capability, dtype)
        build(kernels.gather_kernel, BLOCK_N=16, INDEX=index)

    value = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs CUDA tensors, found cpu"):
        deformable_attention(
            value, [1, 1], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1), None, "triton"
        )


if __name__ == "__main__":
    main()
