// Divergences that take sums over classes, given the states: sums of terms ≥ 0, and for each gradient
// two more, before the gradient itself: `kldiv.kernels.triton.divergences` has the same formulas.
//
// A divergence is a specialisation of `Divergence`: the term of a class, and p·(u less its value at
// the anchor), for the own side's gradient; `prepare` finds the numbers of a row for that.

// e⁻ˣ − 1
DEVICE Real less_of(Real x) {
    Real near = clipped_to_near(x);
    return absolute(x) < Real(NEAR) ? phi_near(near) - near : exp_of_real(-x) - Real(1);
}

// A class seen from the side whose gradient it is: p is the own probability, q the other.
struct Class {
    Real own, other;
    const Constants& c;
    const Heat &heat, &half;  // the second of 2T

    DEVICE_MEMBER Real p() const { return c.p(own, heat); }
    DEVICE_MEMBER Real q() const { return c.q(other, heat); }
    // √p and √q, also where p or q underflows
    DEVICE_MEMBER Real root_p() const { return weight(two_difference(own, c.t_top), half) * c.t_root; }
    DEVICE_MEMBER Real root_q() const {
        return weight(two_difference(other, c.s_top), half) * c.s_root;
    }
    // x = log(p/q)
    DEVICE_MEMBER Real x() const { return c.log_ratio(own, other, heat); }
    // x less its value at the anchor
    DEVICE_MEMBER Real step() const { return deviation(own, other, c.anchor, heat) - c.behind; }
    // q − p
    DEVICE_MEMBER Real fall() const { return excess(own, other, c, heat); }
    // Whether only one of the two can be
    DEVICE_MEMBER bool own_alone() const {
        return other == Real(-INFINITE) && own > Real(-INFINITE);
    }
    DEVICE_MEMBER bool other_alone() const {
        return own == Real(-INFINITE) && other > Real(-INFINITE);
    }
};

template <int WHICH>
struct Divergence {};

// Gradients that are p·(u − its mean), given p and p·u by `rise`.
template <class D>
struct Risen {
    static DEVICE_MEMBER void prepare(Constants&, const Row&, const Wide*, const AtAnchor&) {}
    // The sums over classes that the gradient takes.
    static DEVICE_MEMBER Two<Real> means(const Class& k) { return {D::rise(k).b, Real(0)}; }
    // T times the gradient
    static DEVICE_MEMBER Real slope(const Class& k, Two<Real> sums) {
        Two<Real> rise = D::rise(k);
        // A class that takes no part has 0 in a row of NaN, too.
        if (k.own == Real(-INFINITE) && rise.b == 0) return Real(0);
        return rise.b - rise.a * sums.a;
    }
};
