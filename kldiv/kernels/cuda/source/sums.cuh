// Divergences that take sums over classes, given the states: sums of terms ≥ 0, and for each gradient
// two more, before the gradient itself: `kldiv.kernels.triton.divergences` has the same formulas.

// e⁻ˣ − 1
DEVICE Real less_of(Real x) {
    Real near = clipped_to_near(x);
    return absolute(x) < Real(NEAR) ? phi_near(near) - near : exp_of_real(-x) - Real(1);
}

template <class F>
struct Sums {
    F value;
    Two<F> t, s;  // for the gradients in t and s
    DEVICE_MEMBER Sums operator+(const Sums& o) const { return {value + o.value, t + o.t, s + o.s}; }
};
template <class F>
DEVICE Sums<F> from_lane(Sums<F> x, int mask) {
    return {from_lane(x.value, mask), from_lane(x.t, mask), from_lane(x.s, mask)};
}
constexpr int SUMS_OF_PART = sizeof(Sums<Wide>) / sizeof(Wide);
