// α-divergences, sums of p^α q^κ with κ = 1 − α: seen from the own side p^other_rate·q^rate.  The rates,
// first and second number, are κ and α for the teacher, and exchanged for the student.

// Σ (√p − √q)², α = ½, whose roots do not underflow
template <>
struct Divergence<HELLINGER> : Risen<Divergence<HELLINGER>> {
    static DEVICE_MEMBER void prepare(Constants& c, const Row& row, const Wide*,
                                      const AtAnchor& anchor) {
        c.power = Real(anchor.power(0.5));
        c.t_root = Real(root_of(row.t_scale));
        c.s_root = Real(root_of(row.s_scale));
    }
    static DEVICE_MEMBER Real term(const Class& k) {
        Real x = k.x(), far = absolute(x) > Real(200) ? Real(100) : Real(0.5) * absolute(x);
        Real apart = (x < 0 ? k.root_q() : k.root_p()) * less_of(far);
        return apart * apart;
    }
    static DEVICE_MEMBER Two<Real> rise(const Class& k) {
        Real p = k.root_p(), scaled = p * k.c.power, step = Real(0.5) * k.step();
        Real near = -scaled * less_of(step), far = scaled - k.root_q();
        return {p * p, p * (absolute(step) < Real(NEAR) ? near : far)};
    }
};

// α ≥ ½; κ may be below 0, and then it is infinite where a class has p > 0 = q.
template <>
struct Divergence<ALPHA> : Risen<Divergence<ALPHA>> {
    static DEVICE_MEMBER void prepare(Constants& c, const Row& row, const Wide* numbers,
                                      const AtAnchor& anchor) {
        c.power = Real(anchor.power(numbers[0]));
        c.half_log = Real(0.5 * (numbers[1] * log_of(row.t_scale) + numbers[0] * log_of(row.s_scale)));
    }
    // The logarithm of a weight, as low as that its products are finite.
    static DEVICE_MEMBER Real log_weight(Real logit, Real top, const Heat& heat) {
        Real part = (floored(logit) - top) * heat.inverse;
        return part < Real(-FARTHEST) || logit == Real(-INFINITE) ? Real(-FARTHEST) : part;
    }
    // By the larger of p and q, or by logarithms where that underflows.
    static DEVICE_MEMBER Real power(const Class& k, Real p, Real q, Real x) {
        constexpr Real least = Real(8 * (SINGLE ? 0x1p-126 : 0x1p-1022));
        const Constants& c = k.c;
        Real own = Real(0.5) * c.second, other = Real(0.5) * c.first, base = x < 0 ? q : p, half;
        if (base < least) {
            half = own * log_weight(k.own, c.t_top, k.heat) + c.half_log;
            half = other * log_weight(k.other, c.s_top, k.heat) + half;
            base = 1;
        } else {
            half = x * (x < 0 ? own : -other);
        }
        half = exp_of_real(half);
        return (base * half) * half;
    }
    static DEVICE_MEMBER Real term(const Class& k) {
        Real p = k.p(), x = k.x(), rate = k.c.first, z = rate * x, size = absolute(rate);
        if (k.own_alone() && rate < 0) return infinity();
        Real ratio = phi_series(clipped_to_near(z)), term;
        if (absolute(x) * (size > 1 ? size : Real(1)) < 1) {
            term = p * x * x * (phi_series(x) - rate * ratio);
        } else {
            // (p^α q^κ − p)/κ, also where κ is small
            Real change = absolute(z) < Real(NEAR) ? (p * x) * (z * ratio - Real(1))
                                                   : (power(k, p, k.q(), x) - p) / rate;
            term = k.fall() - change;
        }
        return term / k.c.second;
    }
    static DEVICE_MEMBER Two<Real> rise(const Class& k) {
        const Constants& c = k.c;
        Real rate = c.first, p = k.p();
        if ((k.own_alone() && rate < 0) || (k.other_alone() && c.second < 0))
            return {p, Real(nan_of())};
        if (k.own == Real(-INFINITE) && (c.second > 0 || k.other == Real(-INFINITE)))
            return {p, Real(0)};
        Real scaled = p * c.power, step = k.step(), z = rate * step;
        if (absolute(z) < Real(NEAR))
            return {p, scaled * step * (Real(1) - z * phi_series(z))};
        return {p, (scaled - power(k, p, k.q(), k.x())) / rate};
    }
};
