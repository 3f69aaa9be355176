// The classes' terms of Jensen-Shannon, ≥ 0, and log(p/m).

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
