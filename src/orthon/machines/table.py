"""The machines that Orthon knows. docs/machines.md shows the same figures."""

from collections.abc import Mapping
from types import MappingProxyType

from orthon.machines.machine import Link, Machine

# Parts of a data sheet's figure that are reached.
#
# Products on tensor cores, in bfloat16 and TF32. The best shapes reach 80 % in bfloat16: 271 of 312 TFLOP/s on an A100,
# 794 of 989 on an H100, 1745 of 2250 on a B200 (mamf-finder, github.com/stas00/ml-engineering, compute/accelerator).
# Five Newton-Schulz steps, with their additions, reach 41 % to 45 % on an H100: 5.1 ms for 4096² and 297 ms for 16384²,
# as the authors of Dion published (arXiv 2504.05295). Later they published 54 % for 8192 × 28672 and 64 % for 8192²
# (arXiv 2608.11612, appendix E), and whole steps of Muon on 8 B200s that come to this part (docs/published.md).
ON_TENSOR_CORES = 0.6

# Products in float64 and full float32, which power limits. In Linpack (float64) an H100 reaches 55 to 59 of 67 TFLOP/s.
IN_FULL = 0.75

# Factorizations, as a part of what products in float32 reach. The authors of Dion published 11 ms for the Cholesky QR
# of 4096² on an H100, and 395 ms for 16384²: a product of 2 n³ operations, and 4/3 n³ of a factorization and a
# triangular solve. With this part the estimates are 9 ms and 564 ms.
OF_FACTORIZATIONS = 0.3

# The smallest side with which products reach half of that. Libraries multiply tiles of 128 × 128 or 256 × 128. A
# shorter side leaves a part of them empty, or some of the processors without a tile.
PRODUCT_SIDE = 128.0

# The size with which factorizations reach half of theirs. Columns are factored in blocks, one after the other. With
# this the estimate for 4096² above is 10 ms.
FACTOR_SIDE = 600.0

# Copies of transposed matrices, as a part of what other copies reach. The kernels of torch that change the order of
# numbers read or write them in rows that are shorter than what memory hands over at once. This is a guess.
OF_REORDERING = 0.5

# Reading and writing memory. Large copies on an H100 move 3.0 of 3.35 TB/s, which is 90 %. Operations on several
# tensors of all sizes reach less.
OF_MEMORY = 0.85

# Collectives, as a part of what a link carries in one direction. NCCL counts with 235 of 300 GB/s on 8 A100s
# (src/graph/tuning.cc). A network port alone reaches 48 of 50 GB/s, but many ranks that meet in switches do not.
OF_LINKS = 0.8

# Seconds of a small collective. NCCL's src/graph/tuning.cc counts 4 to 10 µs to start, and for every hop 0.5 to 3.4 µs
# over NVLink and 2.7 to 14 µs over a network: 7 to 32 µs for 8 ranks of a node, 15 to 110 µs for 2 to 64 nodes. An
# all-to-all of 4 H100s takes 25 µs at least, in 15 to 17 of which the host starts it (arXiv 2608.11612, appendix D.3).
NVLINK_LATENCY = 15e-6
NETWORK_LATENCY = 50e-6

# Seconds in which the host starts an operation on a GPU: 5 to 10 µs from Python, of which the driver takes 1 to 3.
GPU_LAUNCH = 8e-6

# Seconds in which a GPU starts and ends the smallest kernel: 2 to 3 µs, as profilers show.
GPU_KERNEL = 2.5e-6


def _gpu(
    name: str,
    *,
    float64: float,
    float32: float,
    tf32: float,
    bfloat16: float,
    memory_bandwidth: float,
    memory: float,
    nvlink: float,
    network: float,
    ranks_per_node: int = 8,
) -> Machine:
    """Return a machine from figures of data sheets.

    Args:
        name: of the machine.
        float64: peak in TFLOP/s, on tensor cores where that is more.
        float32: peak in TFLOP/s, without tensor cores.
        tf32: peak in TFLOP/s, without sparsity.
        bfloat16: peak in TFLOP/s, without sparsity.
        memory_bandwidth: in GB/s.
        memory: in GB.
        nvlink: in GB/s in one direction, which is half of what data sheets give.
        network: in GB/s in one direction, for each GPU.
        ranks_per_node: how many GPUs NVLink connects.
    """
    return Machine(
        name=name,
        device="cuda",
        float64=float64 * 1e12 * IN_FULL,
        float32=float32 * 1e12 * IN_FULL,
        tf32=tf32 * 1e12 * ON_TENSOR_CORES,
        bfloat16=bfloat16 * 1e12 * ON_TENSOR_CORES,
        product_side=PRODUCT_SIDE,
        factorization=float32 * 1e12 * IN_FULL * OF_FACTORIZATIONS,
        factor_side=FACTOR_SIDE,
        memory_bandwidth=memory_bandwidth * 1e9 * OF_MEMORY,
        reordering=memory_bandwidth * 1e9 * OF_MEMORY * OF_REORDERING,
        first_touch=0.0,  # torch keeps memory that is free for what comes next
        launch=GPU_LAUNCH,
        kernel=GPU_KERNEL,
        memory=memory * 1e9,
        within_node=Link(nvlink * 1e9 * OF_LINKS, NVLINK_LATENCY),
        between_nodes=Link(network * 1e9 * OF_LINKS, NETWORK_LATENCY),
        ranks_per_node=ranks_per_node,
    )


# One core that talks through gloo. There is one row for all CPUs, so that ranks on different ones choose the same
# routes, and the bandwidth is the same within a node and between nodes, because gloo's work takes longer than the wire.
# A number sent (4 bytes) takes 16 ns: 8 on the wire, and as much to put messages together and take them apart in fresh
# memory. Dion on 2 and 4 ranks took 9 to 20 ns of both ranks' time for each. Measured on one core of an AMD EPYC with
# AVX-512 and AMX, all rates of arithmetic and of memory are 2.5 times these (104 GFLOP/s in float32, 52 in float64,
# Cholesky 18 to 25, 40 to 60 GB/s), and bfloat16 is faster still; most CPUs have no AMX. A small operation takes 1.4 to
# 2 µs there, 4 with the views that it takes, and a small sum of two ranks 110 to 160 µs. Transposed copies of large
# matrices move 2 to 10 GB/s. A page of new memory takes 1.2 to 1.8 µs for 4 KB.
_CPU = Machine(
    name="cpu",
    device="cpu",
    float64=20e9,
    float32=40e9,
    tf32=40e9,  # CPUs multiply in full
    bfloat16=40e9,
    product_side=18.0,
    factorization=8e9,
    factor_side=100.0,
    memory_bandwidth=20e9,
    reordering=2e9,
    first_touch=3e-10,
    launch=2e-6,
    kernel=5e-6,
    memory=16e9,  # a rank's part of a server's
    within_node=Link(0.25e9, 150e-6),
    between_nodes=Link(0.25e9, 200e-6),  # 50 µs more for the way through Ethernet and back
    ranks_per_node=64,
)

MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "cpu": _CPU,
        # NVIDIA A100 80GB SXM data sheet; DGX A100: one HDR InfiniBand port (200 Gbit/s) for each GPU.
        "a100": _gpu(
            "a100",
            float64=19.5,
            float32=19.5,
            tf32=156,
            bfloat16=312,
            memory_bandwidth=2039,
            memory=80,
            nvlink=300,
            network=25,
        ),
        # NVIDIA H100 SXM data sheet; DGX H100: one NDR InfiniBand port (400 Gbit/s) for each GPU.
        "h100": _gpu(
            "h100",
            float64=67,
            float32=67,
            tf32=494.5,
            bfloat16=989,
            memory_bandwidth=3350,
            memory=80,
            nvlink=450,
            network=50,
        ),
        # NVIDIA H200 SXM data sheet: an H100 with more and faster memory. DGX H200: as the H100.
        "h200": _gpu(
            "h200",
            float64=67,
            float32=67,
            tf32=494.5,
            bfloat16=989,
            memory_bandwidth=4800,
            memory=141,
            nvlink=450,
            network=50,
        ),
        # NVIDIA Blackwell data sheet, HGX B200; DGX B200: one NDR InfiniBand port (400 Gbit/s) for each GPU.
        "b200": _gpu(
            "b200",
            float64=37,
            float32=75,
            tf32=1100,
            bfloat16=2250,
            memory_bandwidth=7700,
            memory=180,
            nvlink=900,
            network=50,
        ),
        # NVIDIA GB300 NVL72 data sheet, a 72nd of a rack; one ConnectX-8 port (800 Gbit/s) for each GPU. In float64 the
        # GPU is slow.
        "gb300": _gpu(
            "gb300",
            float64=1.3,
            float32=80,
            tf32=1250,
            bfloat16=2500,
            memory_bandwidth=8000,
            memory=279,
            nvlink=900,
            network=100,
            ranks_per_node=72,
        ),
    }
)

# The row for a GPU by how its name starts, without "NVIDIA". Grace Hopper and Grace Blackwell have the same GPUs, but
# that a B300 without Grace is a tenth slower in bfloat16.
GPU_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "A100": "a100",
        "H100": "h100",
        "H200": "h200",
        "GH200": "h200",
        "B200": "b200",
        "GB200": "b200",
        "B300": "gb300",
        "GB300": "gb300",
    }
)

# The row for GPUs, and other accelerators, that are not in the table.
UNKNOWN_GPU = "a100"
