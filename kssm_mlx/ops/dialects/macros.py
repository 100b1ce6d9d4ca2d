"""What the three dialects of a kernel's body call the same things."""

from __future__ import annotations

HEADERS = {
    "metal": """
#define FUNCTION inline
#define OWN(i, size) ((i) * sizes[0] + lane)
#define BEGIN 0
#define END T
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_ON_GPU UNROLL
#define EXP(x) metal::precise::exp(x)
#define DECAY(x) metal::precise::exp(x)
#define SIN(x) metal::precise::sin(x)
#define COS(x) metal::precise::cos(x)
#define SQRT(x) metal::precise::sqrt(x)
#define IF_LESS(x, y, yes, no) ((x) < (y) ? (yes) : (no))
#define MAX(x, y) metal::max(x, y)
#define ROUND(x) metal::rint(x)
""",
    "cuda": """
#define FUNCTION __device__ inline
#define OWN(i, size) ((i) * sizes[0] + lane)
#define BEGIN 0
#define END T
#define UNROLL _Pragma("unroll")
#define UNROLL_ON_GPU UNROLL
#define EXP(x) expf(x)
#define DECAY(x) expf(x)
#define SIN(x) sinf(x)
#define COS(x) cosf(x)
#define SQRT(x) sqrtf(x)
#define IF_LESS(x, y, yes, no) ((x) < (y) ? (yes) : (no))
#define MAX(x, y) fmaxf(x, y)
#define ROUND(x) rintf(x)
""",
    "cpp": """
#define FUNCTION static inline
#define BEGIN begin
#define END end
#define OWN(i, size) ((lane / LANES * (size) + (i)) * LANES + lane % LANES)
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_ON_GPU
#define EXP(x) exponential(x)
#define DECAY(x) decaying(x)
#define EXPM1(x) exponential_less_one(x)
#define SQRT(x) root(x)
#define IF_LESS(x, y, yes, no) if_less(x, y, yes, no)
#define SIN(x) sine_of(x)
#define COS(x) cosine_of(x)
#define MAX(x, y) maximum(x, y)
#define ROUND(x) rounded(x)
""",
}
# The tokens of a chunk of `count`, forward and backward in time. The number of turns is constant, so that the
# loops can be unrolled and the small arrays they index stay in registers.
LOOPS = """
#define FORTH(t) UNROLL for (int t = 0; t < CHUNK; ++t) if (t < count)
#define BACK(t) UNROLL for (int t = CHUNK - 1; t >= 0; --t) if (t < count)
"""
# The sum over neighbouring lanes that share something, their number a power of 2; each of them gets it.
TOGETHER = {
    "metal": """
FUNCTION float together(float x, int lanes) {
  if (lanes == 32) return metal::simd_sum(x);
  for (int apart = lanes / 2; apart > 0; apart /= 2) x += metal::simd_shuffle_xor(x, ushort(apart));
  return x;
}
""",
    "cuda": """
FUNCTION float together(float x, int lanes) {
  for (int apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(__activemask(), x, apart);
  return x;
}
""",
    "cpp": "#define together(x, lanes) (x)\n",
}
# No lane at all is a launch that only has the kernel built; on CUDA MLX may launch more threads than lanes.
LANE = {
    "metal": "const int lane = int(thread_position_in_grid.x);\nif (lane >= sizes[0]) return;",
    "cuda": "const int lane = int(blockIdx.x * blockDim.x + threadIdx.x);\nif (lane >= sizes[0]) return;",
    "cpp": "",
}
