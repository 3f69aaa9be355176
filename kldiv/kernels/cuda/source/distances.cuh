// Total variation and Hellinger's distance: terms of classes, sums for gradients, and T times these.
// Roots of probabilities do not underflow; `half` is the heat of 2T.

DEVICE Real root_p(Real own, const Constants& c, const Heat& half) {
    return weight(two_difference(own, c.t_top), half) * c.t_root;
}
DEVICE Real root_q(Real other, const Constants& c, const Heat& half) {
    return weight(two_difference(other, c.s_top), half) * c.s_root;
}

DEVICE Real distance_term(Real t, Real s, const Constants& c, const Heat& heat, const Heat& half) {
    Real x = c.log_ratio(t, s, heat);
    if constexpr (DIVERGENCE == TOTAL_VARIATION) {
        return Real(0.5) * absolute(excess(t, s, c, heat));
    } else {
        Real far = absolute(x) > Real(200) ? Real(100) : Real(0.5) * absolute(x);
        Real apart = (x < 0 ? root_q(s, c, half) : root_p(t, c, half)) * less_of(far);
        return apart * apart;
    }
}

// √p and √p (√(q/p) at the anchor less √(q/p))
DEVICE Two<Real> hellinger_rise(Real own, Real other, const Constants& c, const Heat& heat,
                                const Heat& half) {
    Real p = root_p(own, c, half), scaled = p * c.power;
    Real step = Real(0.5) * (deviation(own, other, c.anchor, heat) - c.behind);
    Real near = -scaled * less_of(step), far = scaled - root_q(other, c, half);
    return {p, absolute(step) < Real(NEAR) ? near : far};
}

DEVICE Two<Real> below_and_above(Real p, Real x) {
    Real at = x == 0 ? Real(0.5) * p : Real(0);
    return {x < 0 ? p : at, x > 0 ? p : at};
}

// Masses of p where x is below 0 and above, half of that at 0 in each; or the mean of p's slopes,
// less that at the anchor.
DEVICE Two<Real> distance_means(Real own, Real other, const Constants& c, const Heat& heat,
                                const Heat& half) {
    if constexpr (DIVERGENCE == TOTAL_VARIATION) {
        return below_and_above(c.p(own, heat), c.log_ratio(own, other, heat));
    } else {
        Two<Real> root = hellinger_rise(own, other, c, heat, half);
        return {root.a * root.b, Real(0)};
    }
}

DEVICE Real distance_slope(Real own, Real other, const Constants& c, Two<Real> sums,
                           const Heat& heat, const Heat& half) {
    if constexpr (DIVERGENCE == TOTAL_VARIATION) {
        Real x = c.log_ratio(own, other, heat);
        Real level = x > 0 ? sums.a : x < 0 ? -sums.b : Real(0.5) * (sums.a - sums.b);
        return c.p(own, heat) * (level + c.masked);
    } else {
        Two<Real> root = hellinger_rise(own, other, c, heat, half);
        return (root.a * root.b - root.a * root.a * sums.a) + c.masked;
    }
}

// --- any divergence -------------------------------------------------------------------------------

DEVICE Two<Real> means_of(Real own, Real other, const Constants& c, const Heat& heat,
                          const Heat& half) {
    if constexpr (DIVERGENCE == SHANNON) {
        Real p = c.p(own, heat);
        return {p * shannon_log(own, other, p, c.q(other, heat), c, heat), Real(0)};
    } else {
        return distance_means(own, other, c, heat, half);
    }
}

// Leave the part's sums.
DEVICE void add_sums(const View& view) {
    SHARED Sums<Wide> of_warps[8];
    const Job& job = view.job;
    const char *s = view.base(STUDENT), *t = view.base(TEACHER);
    const Heat& heat = view.heat;
    Heat half = heat_of(2 * heat.temperature);
    Constants c = constants_of(*view.known(0), heat), d = constants_of(*view.known(int(job.sides) - 1), heat);
    Real beta = Real(job.beta), other = Real(job.rest);
    bool wants_t = job.table.has(GRADIENT_T), wants_s = job.table.has(GRADIENT_S);
    Sums<Wide> sums = {0, {0, 0}, {0, 0}};
    constexpr int GROUP = PER < 4 ? PER : 4;
    for (long long start = view.first + (long long)view.member * (32 * GROUP); start < view.last;
         start += (long long)view.team * (32 * GROUP)) {
        Sums<Real> more = summed<0, GROUP>([&](int k) -> Sums<Real> {
            Two<Real> nothing = {Real(0), Real(0)};
            Sums<Real> none = {Real(0), nothing, nothing};
            long long at = start + 32 * k + lane();
            if (at >= view.last) return none;
            Real own = view.load<TYPE_T>(TEACHER, t, at), mine = view.load<TYPE_S>(STUDENT, s, at);
            if (own == Real(-INFINITE) && mine == Real(-INFINITE)) return none;
            Two<Real> of_s = wants_s ? means_of(mine, own, d, heat, half) : nothing;
            if constexpr (DIVERGENCE == SHANNON) {
                Real p = c.p(own, heat), q = c.q(mine, heat);
                Real mean = wants_t ? p * shannon_log(own, mine, p, q, c, heat) : Real(0);
                return {shannon_term(own, mine, p, q, c, beta, other, heat), {mean, Real(0)}, of_s};
            } else {
                return {distance_term(own, mine, c, heat, half),
                        wants_t ? means_of(own, mine, c, heat, half) : nothing, of_s};
            }
        });
        sums = sums + Sums<Wide>{more.value, {more.t.a, more.t.b}, {more.s.a, more.s.b}};
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

DEVICE Real summed_slope(Real own, Real other, const Constants& c, Two<Real> sums, const Heat& heat,
                         const Heat& half) {
    if constexpr (DIVERGENCE == SHANNON) {
        Real p = c.p(own, heat);
        return p * (shannon_log(own, other, p, c.q(other, heat), c, heat) - sums.a);
    } else {
        return distance_slope(own, other, c, sums, heat, half);
    }
}

DEVICE void write_summed_gradients(const View& view, Wide factor, TYPE_S* of_s, TYPE_T* of_t) {
    const Job& job = view.job;
    const Heat& heat = view.heat;
    Heat half = heat_of(2 * heat.temperature);
    bool weighed = DIVERGENCE == SHANNON;
    Sums<Wide> all = sums_of(view);
    if (job.table.has(GRADIENT_T)) {
        Constants c = constants_of(*view.known(0), heat);
        Real scale = Real(weighed ? job.beta * factor : factor);
        Two<Real> sums = {Real(all.t.a), Real(all.t.b)};
        for_each_class(view, [&](Real s, Real t, long long at) {
            write(of_t + at, scale * summed_slope(t, s, c, sums, heat, half));
        });
    }
    if (job.table.has(GRADIENT_S)) {
        Constants c = constants_of(*view.known(int(job.sides) - 1), heat);
        Real scale = Real(weighed ? job.rest * factor : factor);
        Two<Real> sums = {Real(all.s.a), Real(all.s.b)};
        for_each_class(view, [&](Real s, Real t, long long at) {
            write(of_s + at, scale * summed_slope(s, t, c, sums, heat, half));
        });
    }
}
