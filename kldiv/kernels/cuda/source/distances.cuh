// Total variation, and Jeffreys' divergence.

// ½ Σ |p − q|
template <>
struct Divergence<TOTAL_VARIATION> : Risen<Divergence<TOTAL_VARIATION>> {
    static DEVICE_MEMBER Real term(const Class& k) { return Real(0.5) * absolute(k.fall()); }
    // Masses of p where x is below 0 and above, half of that at 0 in each.
    static DEVICE_MEMBER Two<Real> means(const Class& k) {
        Real p = k.p(), x = k.x(), at = x == 0 ? Real(0.5) * p : Real(0);
        return {x < 0 ? p : at, x > 0 ? p : at};
    }
    static DEVICE_MEMBER Real slope(const Class& k, Two<Real> sums) {
        Real x = k.x();
        return k.p() * (x > 0 ? sums.a : x < 0 ? -sums.b : Real(0.5) * (sums.a - sums.b));
    }
};

// w·D(P‖Q) + r·D(Q‖P)
template <>
struct Divergence<JEFFREYS> : Risen<Divergence<JEFFREYS>> {
    static DEVICE_MEMBER Real term(const Class& k) {
        const Constants& c = k.c;
        if ((k.own_alone() && c.first > 0) || (k.other_alone() && c.second > 0)) return infinity();
        Real p = k.p(), q = k.q(), x = k.x();
        if (absolute(x) < Real(NEAR))
            return c.first * (p * phi_near(x)) + c.second * (q * phi_near(-x));
        // x may be cut where its products are not.
        Real step = steps(k.own, k.other, c.pivot), behind = x - clipped(step * k.heat.inverse);
        Real p_x = p * step * k.heat.inverse + p * behind;
        Real q_x = q * step * k.heat.inverse + q * behind;
        Real forward = c.first > 0 ? c.first * ((q - p) + p_x) : Real(0);
        return forward + (c.second > 0 ? c.second * ((p - q) - q_x) : Real(0));
    }
    // Of u only the part that is x, without its weight: NaN where that is infinite
    static DEVICE_MEMBER Two<Real> rise(const Class& k) {
        Real p = k.p();
        if (k.own_alone()) return {p, Real(nan_of())};
        return {p, p * steps(k.own, k.other, k.c.anchor) * k.heat.inverse};
    }
    static DEVICE_MEMBER Real slope(const Class& k, Two<Real> sums) {
        Real straight = k.c.first > 0 ? k.c.first * Risen<Divergence<JEFFREYS>>::slope(k, sums)
                                      : Real(0);
        return straight - k.c.second * k.fall();
    }
};
