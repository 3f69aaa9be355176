// Jensen-Shannon, given the state: a sum of terms ≥ 0, and for each gradient the mean of log(p/m),
// before the gradient itself.

// e⁻ˣ − 1
DEVICE Real less_of(Real x) {
    Real near = clipped_to_near(x);
    return absolute(x) < Real(NEAR) ? phi_near(near) - near : exp_of_real(-x) - Real(1);
}

// A class's term of the divergence, ≥ 0; γ and `rest` are β and 1 − β where p is the larger.
DEVICE Real shannon_term(Real t, Real s, Real p, Real q, const Constants& c, Real beta, Real other,
                         const Heat& heat) {
    // Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
    Real rho = absolute(c.log_ratio(t, s, heat));
    rho = rho > Real(100) ? Real(100) : rho;
    Real gamma = q > p ? other : beta, rest = q > p ? beta : other;
    Real less = less_of(rho), smaller = exp_of_real(-rho);
    Real g = rest * less;
    Real m = gamma + rest * smaller;  // 1 + g, right even where g is close to −1
    Real log_m = log_of(m);
    bool near = g > Real(-0.5);
    Real gap = near ? log1p_near(g).gap : g - log_m;
    Real w = gamma * less / m;
    Real log_ratio = (near ? gap - g : -log_m) - rho;
    // (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
    Real bregman = w > Real(-0.5) ? w * w - (Real(1) + w) * log1p_near(w).gap
                                  : smaller / m * log_ratio - w;
    return (q > p ? q : p) * (gamma * gap + rest * m * bregman);
}

// log(p/m) less its value where d is at the anchor
DEVICE Real shannon_log(Real own, Real other, Real p, Real q, const Constants& c,
                        const Heat& heat) {
    Word<Real> d = two_difference(floored(own), floored(other));
    Real u = clipped(difference(c.anchor, d) * heat.inverse) + c.behind;
    Real r = clipped(difference(c.pivot, d) * heat.inverse) - c.offset;
    // The ratio of probabilities is right to a few u, e^r only to u·|r|.
    Real y = absolute(u) < Real(NEAR) ? c.theta * less_of(-u)
                                : c.kappa * (q / (p > 0 ? p : Real(1))) - c.theta;
    if (is_near(y)) return c.masked - log1p_near(y).log;
    // log(1 + y) = log((1 − θ) + κ q/p), without overflow
    constexpr Real least = Real(LEAST), deep = Real(DEEP);
    Real larger_one = q > p ? q : p;
    larger_one = larger_one > 0 ? larger_one : Real(1);
    Real share = p / larger_one, m = c.rest * share + c.kappa * (q / larger_one);
    m = (m > 0 ? m : Real(1)) / (share < least ? least : share);
    return c.masked - (log_of(m) + (r > deep ? r - deep : Real(0)));
}

DEVICE Real mean_log(Real own, Real other, const Constants& c, const Heat& heat) {
    Real p = c.p(own, heat);
    return p * shannon_log(own, other, p, c.q(other, heat), c, heat);
}

// Leave the part's sums: of the divergence, and Σ p log(p/m) for the gradients in t and s.
DEVICE void add_shannon(const View& view) {
    SHARED Three<Wide> of_warps[8];
    const Job& job = view.job;
    const char *s = view.base(STUDENT), *t = view.base(TEACHER);
    const Heat& heat = view.heat;
    Constants c = constants_of(*view.known(0), heat), d = constants_of(*view.known(int(job.sides) - 1), heat);
    Real beta = Real(job.beta), other = Real(job.rest);
    bool wants_t = job.table.has(GRADIENT_T), wants_s = job.table.has(GRADIENT_S);
    Three<Wide> sums = {0, 0, 0};
    constexpr int GROUP = PER < 4 ? PER : 4;
    for (long long start = view.first + (long long)view.member * (32 * GROUP); start < view.last;
         start += (long long)view.team * (32 * GROUP)) {
        Three<Real> more = summed<0, GROUP>([&](int k) -> Three<Real> {
            Three<Real> none = {Real(0), Real(0), Real(0)};
            long long at = start + 32 * k + lane();
            if (at >= view.last) return none;
            Real own = view.load<TYPE_T>(TEACHER, t, at), mine = view.load<TYPE_S>(STUDENT, s, at);
            if (own == Real(-INFINITE) && mine == Real(-INFINITE)) return none;
            Real p = c.p(own, heat), q = c.q(mine, heat);
            return {shannon_term(own, mine, p, q, c, beta, other, heat),
                    wants_t ? p * shannon_log(own, mine, p, q, c, heat) : Real(0),
                    wants_s ? mean_log(mine, own, d, heat) : Real(0)};
        });
        sums = sums + Three<Wide>{more.a, more.b, more.c};
    }
    sums = over_lanes(sums);
    if (view.team > 1) {
        if (lane() == 0) of_warps[view.member] = sums;
        sync_block();
        if (view.member == 0) {
            Three<Wide> none = {0, 0, 0};
            sums = over_lanes(lane() < view.team ? of_warps[lane()] : none);
        }
    }
    if (view.leads()) {
        Wide* found = view.sums(part());
        found[0] = sums.a;
        found[1] = sums.b;
        found[2] = sums.c;
    }
}

DEVICE Wide shannon_sum(const View& view, int which) {
    Wide sum = 0;
    for (long long part = 0; part < view.job.parts; ++part) sum += view.sums(part)[which];
    return sum;
}

DEVICE Wide shannon_value(const View& view) {
    Wide kl = view.known(0)->kl;
    return kl == kl ? shannon_sum(view, 0) : kl;
}

DEVICE void write_shannon_gradients(const View& view, Wide factor, TYPE_S* of_s, TYPE_T* of_t) {
    const Job& job = view.job;
    const Heat& heat = view.heat;
    if (job.table.has(GRADIENT_T)) {
        Constants c = constants_of(*view.known(0), heat);
        Real scale = Real(job.beta * factor), mean = Real(shannon_sum(view, 1));
        for_each_class(view, [&](Real s, Real t, long long at) {
            Real p = c.p(t, heat), log = shannon_log(t, s, p, c.q(s, heat), c, heat);
            write(of_t + at, scale * (p * (log - mean)));
        });
    }
    if (job.table.has(GRADIENT_S)) {
        Constants c = constants_of(*view.known(int(job.sides) - 1), heat);
        Real scale = Real(job.rest * factor), mean = Real(shannon_sum(view, 2));
        for_each_class(view, [&](Real s, Real t, long long at) {
            Real p = c.p(s, heat), log = shannon_log(s, t, p, c.q(t, heat), c, heat);
            write(of_s + at, scale * (p * (log - mean)));
        });
    }
}
