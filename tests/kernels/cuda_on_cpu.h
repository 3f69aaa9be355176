// In the place of kldiv/kernels/cuda/source/primitives.cuh: the same kernels on a CPU.
//
// A thread of CUDA is a context with a stack of its own, and the threads of a block take turns:
// one runs until it meets a barrier or an exchange.  So lanes, warps, shared memory and the order
// of every sum are as on a GPU.  Blocks run one after another.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define KERNEL static void
#define DEVICE static inline
#define DEVICE_CALL static
#define DEVICE_MEMBER inline
#define SHARED static

typedef unsigned short Half;
typedef unsigned short BFloat;

namespace cpu {

constexpr int MOST = 256, STACK = 1 << 16;

struct Barrier {
    int members = 0, waiting = 0;
    long generation = 0;
};

ucontext_t begin[MOST];
jmp_buf scheduler, contexts[MOST];
bool begun[MOST], ended[MOST];
Barrier of_block, of_warp[MOST / 32];
double slots[2][MOST];  // what lanes show each other, every other time in the other half
int turn[MOST];
int thread, threads;
long long block_x, grid_x;
int block_y;
void (*kernel)(const void*);
const void* argument;

// swapcontext would do, but asks the system for the signal mask every time.
inline void leave() {
    if (_setjmp(contexts[thread]) == 0) _longjmp(scheduler, 1);
}

inline void go_on() {
    if (_setjmp(scheduler)) return;
    if (begun[thread]) _longjmp(contexts[thread], 1);
    begun[thread] = true;
    setcontext(&begin[thread]);
}

inline void wait_at(Barrier& barrier) {
    long mine = barrier.generation;
    if (++barrier.waiting == barrier.members) {
        barrier.waiting = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == mine) leave();
}

template <class V>
inline V exchange(V value, int mask) {
    double(&half)[MOST] = slots[turn[thread] ^= 1];
    std::memcpy(&half[thread], &value, sizeof value);
    wait_at(of_warp[thread / 32]);
    std::memcpy(&value, &half[thread ^ mask], sizeof value);
    return value;
}

inline void enter() {
    kernel(argument);
    ended[thread] = true;
    _longjmp(scheduler, 1);
}

inline bool run_block() {
    static std::vector<char> stacks(std::size_t(MOST) * STACK);
    of_block = {threads, 0, 0};
    for (int i = 0; i < threads / 32; ++i) of_warp[i] = {32, 0, 0};
    for (int i = 0; i < threads; ++i) {
        begun[i] = ended[i] = false;
        turn[i] = 0;
        getcontext(&begin[i]);
        begin[i].uc_stack.ss_sp = &stacks[std::size_t(i) * STACK];
        begin[i].uc_stack.ss_size = STACK;
        begin[i].uc_link = nullptr;
        makecontext(&begin[i], enter, 0);
    }
    int left = threads;
    // Every pass over the threads brings at least one barrier to its end, or they wait forever.
    long passed = -1;
    while (left) {
        long before = passed;
        passed = of_block.generation;
        for (int i = 0; i < threads / 32; ++i) passed += of_warp[i].generation;
        if (passed == before && left == threads) return false;
        int running = left;
        for (thread = 0; thread < threads; ++thread) {
            if (ended[thread]) continue;
            go_on();
            left -= ended[thread];
        }
        if (left != running) passed = -1;
    }
    return true;
}

inline int launch(void (*function)(const void*), const void* job, long long gx, int gy, int size) {
    kernel = function;
    argument = job;
    threads = size;
    grid_x = gx;
    for (block_y = 0; block_y < gy; ++block_y)
        for (block_x = 0; block_x < gx; ++block_x)
            if (!run_block()) return 1;
    return 0;
}

}  // namespace cpu

DEVICE int lane() { return cpu::thread & 31; }
DEVICE int warp() { return cpu::thread >> 5; }
DEVICE int warps_of_block() { return cpu::threads >> 5; }
DEVICE long long block() { return cpu::block_x; }
DEVICE long long blocks() { return cpu::grid_x; }
DEVICE int part() { return cpu::block_y; }

DEVICE void sync_block() { cpu::wait_at(cpu::of_block); }
DEVICE void sync_warp() { cpu::wait_at(cpu::of_warp[cpu::thread / 32]); }
DEVICE float from_lane(float value, int mask) { return cpu::exchange(value, mask); }
DEVICE double from_lane(double value, int mask) { return cpu::exchange(value, mask); }

DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE double fused(double a, double b, double c) { return std::fma(a, b, c); }
DEVICE double root_of(double x) { return std::sqrt(x); }

template <class To, class From>
DEVICE To cast_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To value;
    std::memcpy(&value, &x, sizeof x);
    return value;
}

DEVICE int bits(float x) { return cast_bits<int>(x); }
DEVICE long long bits(double x) { return cast_bits<long long>(x); }
DEVICE float of_bits(int i) { return cast_bits<float>(i); }
DEVICE double of_bits(long long i) { return cast_bits<double>(i); }

// CUDA promises its logarithm and exponential to an ulp: half of all results are off by one here.
template <class F>
DEVICE F off_by_an_ulp(F x, F right) {
    auto kind = cast_bits<unsigned long long>(double(x)) * 0x9E3779B97F4A7C15ull >> 62;
    if (kind > 1 || x == 0 || right == 0 || !std::isfinite(right)) return right;
    return std::nextafter(right, kind ? F(INFINITY) : -F(INFINITY));
}

DEVICE float log_of(float x) { return off_by_an_ulp(x, std::log(x)); }
DEVICE double log_of(double x) { return off_by_an_ulp(x, std::log(x)); }
DEVICE double exp_of(double x) { return off_by_an_ulp(x, std::exp(x)); }

DEVICE float of_half(Half x) {
    int exponent = (x >> 10) & 31, rest = x & 1023;
    float size = exponent == 31 ? (rest ? NAN : INFINITY)
                 : exponent     ? std::ldexp(float(1024 + rest), exponent - 25)
                                : std::ldexp(float(rest), -24);
    return x & 0x8000 ? -size : size;
}

DEVICE Half half_of(float x) {
    Half sign = std::signbit(x) ? 0x8000 : 0;
    float size = std::fabs(x);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
    long rest = std::lrint(std::ldexp(size, 10 - exponent));  // to even
    return Half(sign | (((exponent + 14) << 10) + rest));
}

DEVICE float to_zero(double x) {
    float near = float(x);
    return std::fabs(double(near)) > std::fabs(x) ? std::nextafter(near, 0.0f) : near;
}
