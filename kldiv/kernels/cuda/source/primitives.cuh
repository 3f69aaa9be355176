// All that the kernels ask of CUDA: indices, barriers, exchange among lanes, fused multiply-add,
// bits.  Tests put another file in the place of this one and run the rest on a CPU.

#define KERNEL extern "C" __global__ void __launch_bounds__(256, 2)
#define DEVICE __device__ __forceinline__
#define DEVICE_CALL static __device__ __noinline__  // called seldom: code once is worth more
#define DEVICE_MEMBER __device__ __forceinline__
#define SHARED __shared__

typedef unsigned short Half;
typedef unsigned short BFloat;

DEVICE int lane() { return int(threadIdx.x) & 31; }
DEVICE int warp() { return int(threadIdx.x) >> 5; }
DEVICE int warps_of_block() { return int(blockDim.x) >> 5; }
DEVICE long long block() { return blockIdx.x; }
DEVICE long long blocks() { return gridDim.x; }
DEVICE int part() { return int(blockIdx.y); }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

// The value that the lane has whose number differs in the bits of the mask.
DEVICE float from_lane(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE double from_lane(double value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float log_of(float x) { return logf(x); }
DEVICE double log_of(double x) { return log(x); }
DEVICE double exp_of(double x) { return exp(x); }
DEVICE double root_of(double x) { return sqrt(x); }

DEVICE int bits(float x) { return __float_as_int(x); }
DEVICE long long bits(double x) { return __double_as_longlong(x); }
DEVICE float of_bits(int i) { return __int_as_float(i); }
DEVICE double of_bits(long long i) { return __longlong_as_double(i); }

DEVICE float of_half(Half x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
}
DEVICE Half half_of(float x) {
    Half value;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value) : "f"(x));
    return value;
}
DEVICE float to_zero(double x) { return __double2float_rz(x); }
