// Any divergence that takes sums: these, the value and the gradients.  `Now` is the divergence.

// The constants of a row for both sides, 0 the teacher's and 1 the student's: in shared memory, as both
// are more than the registers hold.
template <class Now>
DEVICE const Constants* shared_constants(const View& view) {
    SHARED Constants of_teams[8][2];
    Constants* of_sides = of_teams[warp() / view.team];
    view.sync();
    if (view.leads()) {
        for (int side = 0; side < view.job.sides; ++side) {
            const Row& row = *view.known(side);
            Wide numbers[4];
            for (int which = 0; which < 4; ++which) numbers[which] = view.job.number(which, side);
            Constants c = constants_of(row, view.heat);
            c.first = Real(numbers[0]);
            c.second = Real(numbers[1]);
            c.third = Real(numbers[2]);
            c.fourth = Real(numbers[3]);
            Now::prepare(c, row, numbers, at_anchor(row, view.heat.temperature));
            of_sides[side] = c;
        }
    }
    view.sync();
    return of_sides;
}

// Leave the part's sums.
template <class Now>
DEVICE void add_sums(const View& view, const Constants* constants) {
    SHARED Sums<Wide> of_warps[8];
    const Job& job = view.job;
    const char *s = view.base(STUDENT), *t = view.base(TEACHER);
    Heat half = heat_of(2 * view.heat.temperature);
    bool wants_t = job.table.has(GRADIENT_T), wants_s = job.table.has(GRADIENT_S);
    Sums<Wide> sums = {0, {0, 0}, {0, 0}};
    constexpr int GROUP = PER < 4 ? PER : 4;
    for (long long start = view.first + (long long)view.member * (32 * GROUP); start < view.last;
         start += (long long)view.team * (32 * GROUP)) {
        // One side after the other, by the same instructions.
#pragma unroll 1
        for (int side = 0; side < 1 + wants_s; ++side) {
            bool wanted = side ? wants_s : wants_t;
            Three<Real> more = summed<0, GROUP>([&](int k) -> Three<Real> {
                Three<Real> none = {Real(0), Real(0), Real(0)};
                long long at = start + 32 * k + lane();
                if (at >= view.last) return none;
                Real of_t = view.load<TYPE_T>(TEACHER, t, at);
                Real of_s = view.load<TYPE_S>(STUDENT, s, at);
                if (of_t == Real(-INFINITE) && of_s == Real(-INFINITE)) return none;
                Class it = {side ? of_s : of_t, side ? of_t : of_s, constants[side], view.heat, half};
                Two<Real> means = wanted ? Now::means(it) : Two<Real>{Real(0), Real(0)};
                return {side ? Real(0) : Now::term(it), means.a, means.b};
            });
            sums.value += more.a;
            Two<Wide>& of_side = side ? sums.s : sums.t;
            of_side = of_side + Two<Wide>{more.b, more.c};
        }
    }
    sums = over_lanes(sums);
    if (view.team > 1) {
        if (lane() == 0) of_warps[view.member] = sums;
        sync_block();
        if (view.member == 0) {
            Sums<Wide> none = {0, {0, 0}, {0, 0}};
            sums = over_lanes(lane() < view.team ? of_warps[lane()] : none);
        }
    }
    if (view.leads()) *view.sums(part()) = sums;
}

DEVICE Sums<Wide> sums_of(const View& view) {
    Sums<Wide> all = *view.sums(0);
    for (long long part = 1; part < view.job.parts; ++part) all = all + *view.sums(part);
    return all;
}

DEVICE Wide summed_value(const View& view) {
    Wide kl = view.known(0)->kl;
    return kl == kl ? sums_of(view).value : kl;
}

template <class Now>
DEVICE void write_summed_gradients(const View& view, const Constants* constants, Wide factor,
                                   TYPE_S* of_s, TYPE_T* of_t) {
    const Job& job = view.job;
    const Heat& heat = view.heat;
    Heat half = heat_of(2 * heat.temperature);
    Sums<Wide> all = sums_of(view);
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
        if (!job.table.has(side ? GRADIENT_S : GRADIENT_T)) continue;
        const Constants& c = constants[side];
        // Of Jensen-Shannon all is without its weight.
        Real scale = Real(DIVERGENCE == SHANNON ? job.number(2, side) * factor : factor);
        Two<Real> sums = side ? Two<Real>{Real(all.s.a), Real(all.s.b)}
                              : Two<Real>{Real(all.t.a), Real(all.t.b)};
        for_each_class(view, [&](Real s, Real t, long long at) {
            Class it = {side ? s : t, side ? t : s, c, heat, half};
            Real slope = scale * (Now::slope(it, sums) + c.masked);
            if (side) write(of_s + at, slope);
            else write(of_t + at, slope);
        });
    }
}
