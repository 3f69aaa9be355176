// y·(log y − x) and its derivatives in one pass over the data: `kldiv.formulas.pointwise`.
//
// Elements are computed in Real and added in pairs; sums of PER of them are collected in Wide, with
// the rounding errors of that.  Each block leaves its total: nothing is added atomically.
//
// LOG_TARGET is 1 where y is logarithms of probabilities.  x and its gradient are of TYPE_X, y and
// its gradient of TYPE_Y, the elements' divergences of TYPE_E, the gradient in these of TYPE_C.

enum Array { X = 1, Y, KEEP, COTANGENT, ELEMENTS, GRADIENT_X, GRADIENT_Y };

struct Job {
    Table<7> table;      // [1 + 7, STRIDES + AXES], arrays of `Array`; an address of 0 is none
    long long size;      // number of elements
    const Wide* factor;  // [1], gradient in each element's divergence, or 1 beside a COTANGENT
    Wide* totals;        // [blocks], output: each block's sum; or 0, where it is not wanted
};

DEVICE Real kl(Real x, Real y) {
    Real edge = x == x ? y : x;  // read where y = 0 only: NaN, or that 0
    return y == 0 ? edge : y * (log_of(y) - x);
}

DEVICE Real kl_slope(Real x, Real y) { return y == 0 ? y : log_of(y) + Real(1) - x; }

DEVICE Real kl_log_target(Real x, Real y, Real order) {
    Real weight = exp_of_real(y), apart = y - x + order;
    // e^y underflows where y is finite and far below zero; P is positive there all the same, so
    // that an infinite difference must win over the rounded zero.
    Real value = absolute(apart) == infinity() ? apart : weight * apart;
    Real edge = x == x ? weight : x;
    return y == Real(-INFINITE) ? edge : value;
}

DEVICE char* place(const Job& job, int which, long long index, long long size) {
    if (job.table.cells[which][CONTIGUOUS]) return (char*)job.table.cells[which][ADDRESS] + index * size;
    return job.table.at(which, index, job.table.axes());
}

template <class T>
DEVICE Real load(const Job& job, int which, long long index) {
    return read((const T*)place(job, which, index, sizeof(T)));
}

template <class T>
DEVICE void store(const Job& job, int which, long long index, Real value) {
    write((T*)place(job, which, index, sizeof(T)), value);
}

KERNEL pointwise(const Job job) {
    SHARED Wide of_warps[8];
    int thread = 32 * warp() + lane(), threads = 32 * warps_of_block();
    const auto& table = job.table;
    bool elements = table.has(ELEMENTS), in_x = table.has(GRADIENT_X), in_y = table.has(GRADIENT_Y);
    Real factor = in_x || in_y ? Real(*job.factor) : Real(0);
    Wide total = 0, lost = 0;
    long long chunk = (long long)threads * PER;
    for (long long start = block() * chunk; start < job.size; start += blocks() * chunk) {
        Real x[PER], y[PER];
        bool kept[PER];
        for (int k = 0; k < PER; ++k) {
            long long at = start + (long long)k * threads + thread;
            kept[k] = at < job.size;
            if (kept[k] && table.has(KEEP)) kept[k] = *place(job, KEEP, at, 1) != 0;
            x[k] = kept[k] ? load<TYPE_X>(job, X, at) : Real(0);
            y[k] = kept[k] ? load<TYPE_Y>(job, Y, at) : LOG_TARGET ? Real(-INFINITE) : Real(0);
        }
        if (job.totals) {
            Wide part = summed<0, PER>([&](int k) -> Real {
                return LOG_TARGET ? kl_log_target(x[k], y[k], Real(0)) : kl(x[k], y[k]);
            });
            Word<Wide> sum = two_sum(total, part);
            lost += sum.low;
            total = sum.high;
        }
        if (!elements && !in_x && !in_y) continue;
        for (int k = 0; k < PER; ++k) {
            long long at = start + (long long)k * threads + thread;
            if (at >= job.size) break;
            if (elements)
                store<TYPE_E>(job, ELEMENTS, at,
                              LOG_TARGET ? kl_log_target(x[k], y[k], Real(0)) : kl(x[k], y[k]));
            Real scale = table.has(COTANGENT) ? load<TYPE_C>(job, COTANGENT, at) * factor : factor;
            if (in_x) {
                Real slope = LOG_TARGET ? -exp_of_real(y[k]) : -y[k];
                store<TYPE_X>(job, GRADIENT_X, at, kept[k] ? scale * slope : Real(0));
            }
            if (in_y) {
                Real slope = LOG_TARGET ? kl_log_target(x[k], y[k], Real(1)) : kl_slope(x[k], y[k]);
                store<TYPE_Y>(job, GRADIENT_Y, at, kept[k] ? scale * slope : Real(0));
            }
        }
    }
    if (!job.totals) return;
    if (absolute(total) < INFINITE) total += lost;
    total = over_lanes(total);
    if (lane() == 0) of_warps[warp()] = total;
    sync_block();
    if (warp() == 0) {
        total = over_lanes(lane() < warps_of_block() ? of_warps[lane()] : Wide(0));
        if (lane() == 0) job.totals[block()] = total;
    }
}
