// Divergences from a mixture M = mP + (1 − m)Q: a·D(P‖M) + b·D(Q‖M), whose numbers are m, 1 − m, a, b.

struct OfMixture {
    // theta = 1/(1 + k e^z), rest = 1 − theta and kappa = theta e^z: z = log(p/q) at the anchor
    static DEVICE_MEMBER void prepare(Constants& c, const Row&, const Wide* numbers,
                                      const AtAnchor& anchor) {
        Wide k = numbers[0] / numbers[1], z = anchor.log(), small = exp_of(-absolute(z));
        Wide above = small + k, below = 1 + k * small;
        c.theta = Real(z > 0 ? small / above : 1 / below);
        c.rest = Real(z > 0 ? k / above : k * small / below);
        c.kappa = Real(z > 0 ? 1 / above : small / below);
        Wide of_own = numbers[2], of_other = numbers[3] * k;
        Wide both = of_own < of_other ? of_own : of_other;
        c.of_log = Real(both);
        c.of_rise = Real(of_own - both);
        c.of_share = Real(of_other - both);
    }

    // A class's term of the divergence, ≥ 0; γ, rest and the weights are those of the larger of p, q.
    static DEVICE_MEMBER Real term(const Class& k) {
        const Constants& c = k.c;
        // Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
        Real p = k.p(), q = k.q(), rho = absolute(k.x());
        rho = rho > Real(100) ? Real(100) : rho;
        Real gamma = q > p ? c.second : c.first, rest = q > p ? c.first : c.second;
        Real of_base = q > p ? c.fourth : c.third, of_other = q > p ? c.third : c.fourth;
        if constexpr (DIVERGENCE == SHANNON) {
            of_base = gamma;
            of_other = rest;
        }
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
        return (q > p ? q : p) * (of_base * gap + of_other * m * bregman);
    }

    // p, and p·(u less its value where d is at the anchor); of Jensen-Shannon without its weight
    static DEVICE_MEMBER Two<Real> rise(const Class& k) {
        const Constants& c = k.c;
        Real p = k.p(), q = k.q(), step = k.step();
        // The ratio of probabilities is right to a few u, e^r only to u·|r|.
        Real y = absolute(step) < Real(NEAR) ? c.theta * less_of(step)
                                             : c.kappa * (q / (p > 0 ? p : Real(1))) - c.theta;
        bool near = is_near(y);
        Real log, eta;
        if (near) {
            log = log1p_near(y).log;
            eta = y / (Real(1) + y);
        } else {
            // log(1 + y) = log((1 − θ) + κ q/p), without overflow
            constexpr Real least = Real(LEAST), deep = Real(DEEP);
            Real r = -k.x(), larger_one = q > p ? q : p;
            larger_one = larger_one > 0 ? larger_one : Real(1);
            Real share = p / larger_one, m = c.rest * share + c.kappa * (q / larger_one);
            m = (m > 0 ? m : Real(1)) / (share < least ? least : share);
            log = log_of(m) + (r > deep ? r - deep : Real(0));
            eta = Real(1) - Real(1) / m;
        }
        if constexpr (DIVERGENCE == SHANNON) return {p, -p * log};
        // `kldiv.formulas.logits._combined`: the smaller weight multiplies the logarithm, and the
        // rest has one sign.
        Real rising = near ? log1p_near(-eta).gap + eta * c.theta : log - c.rest * eta;
        return {p, -p * (c.of_log * log + c.of_rise * rising + c.of_share * (c.rest * eta))};
    }
};

template <>
struct Divergence<SHANNON> : OfMixture, Risen<OfMixture> {
    using OfMixture::prepare;
};
template <>
struct Divergence<MIXTURE> : OfMixture, Risen<OfMixture> {
    using OfMixture::prepare;
};
