"""Block sizes of the Triton kernels. One set for every device, and no autotuning: a forward and its backward must not
disagree, and a first call must not search.

They come from reasoning, before anything ran on a GPU:
- 4 warps with 8 to 32 elements per thread: several 128-bit loads in flight per thread, registers for 8 or more
  programs per multiprocessor;
- a chunk (what one program reduces) of a few blocks: partial results cost well under a per cent of the traffic,
  and common sizes still give each multiprocessor several programs.
The chunks also fix the order of every sum, so results depend on the shape alone.
"""

WARPS = 4

# modulate: a tile of [tokens, channels], rows of 256 bytes or more in half precision. Fewer tokens per program when the
# batch would not fill the device.
MODULATE_TILE = 4096
MODULATE_CHANNELS = 128
MODULATE_WARPS = 8
MODULATE_TOKENS = (64, 32, 16, 8)
MODULATE_PROGRAMS = 512  # about four per multiprocessor of the largest devices
MODULATE_WINDOW = 64  # pixels of the map that are read at once for one token

# degradation_target: a tile of [rows, columns] pixels; [channels, pixels] for features
TARGET_TILE = 1024
TARGET_FEATURE_CHANNELS = 32
TARGET_FEATURE_PIXELS = 32
TARGET_SUPPORT = 32  # pixels of the adjoint of the upsampling that are read at once

# grpo_loss and sde_step: flat blocks, and the chunk that one program reduces
FLAT_BLOCK = 1024
FLAT_CHUNK = 4096

# group_advantage: the largest fp32 call that is one program, and the tile of [groups, members] beyond it
ADVANTAGE_ONE_LAUNCH = 4096
ADVANTAGE_TILE = 1024

PARTIALS = 256  # partial results that a finishing program reads at once
# The same where a single program finishes a whole tensor: its rounds come one after the other while nothing else runs.
ALL_PARTIALS = 1024
ALL_PARTIALS_WARPS = 16


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pixel_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile of TARGET_TILE pixels for images of this width."""
    columns = min(power_of_two(width), TARGET_TILE)
    return TARGET_TILE // columns, columns
