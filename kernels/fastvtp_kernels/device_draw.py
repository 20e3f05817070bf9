"""What kernels that draw at random numbers start from."""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl


@triton.jit
def key_and_step(draw_ptr, key, step, STREAM: tl.constexpr, ON_DEVICE: tl.constexpr):
    """Return the Philox key and the step of a draw: those given, or of the seed and the step at `draw_ptr`.

    Which of them `philox.for_kernels` says; `key` is what `philox.kernel_key` makes of the seed, and of STREAM.
    """
    if ON_DEVICE:
        return tl.load(draw_ptr) ^ STREAM, tl.load(draw_ptr + 1).to(tl.int32)
    else:
        return key, step
