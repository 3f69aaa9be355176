// The state of a tile of classes, and of tiles together: `kldiv.formulas.state`, whose docstring
// explains pivots and anchors.  A warp has a tile, PER classes in the registers of each lane; the
// tile's own sums are in Real, pairwise.  Tiles are merged in Wide, up to 32 at a time: each lane
// has the state of one, so that merging hardly adds to the time or to the rounding.

DEVICE State empty_state() {
    return {-INFINITE, 0, -INFINITE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
}

constexpr int TILE = 32 * PER;

struct Tile {
    Real own[PER], other[PER];  // t and s of the state; −∞ where there is no class
};

// --- of a tile ------------------------------------------------------------------------------------

// d − c, finite where that over T is not
DEVICE Real steps(Real t, Real s, Word<Real> c) {
    return clipped(difference(two_difference(floored(t), floored(s)), c));
}

// (d − c)/T, as far as can be where one of the two is −∞: the other may be as low as can be.
DEVICE Real deviation(Real t, Real s, Word<Real> c, const Heat& heat) {
    Real x = clipped(steps(t, s, c) * heat.inverse);
    x = s == Real(-INFINITE) ? Real(FARTHEST) : x;
    return t == Real(-INFINITE) ? (s == Real(-INFINITE) ? Real(0) : Real(-FARTHEST)) : x;
}

// d − c right to u² of d: enough to find a pivot
DEVICE Real quickly(Real t, Real s, Word<Real> c) {
    Word<Real> d = two_difference(floored(t), floored(s));
    return clipped((d.high - c.high) + (d.low - c.low));
}

// The largest s where t is at its maximum.
DEVICE Real beside_of(const Tile& tile, Real t_max) {
    Real beside = Real(-INFINITE);
    for (int k = 0; k < PER; ++k)
        beside = larger(beside, tile.own[k] == t_max ? floored(tile.other[k]) : Real(-INFINITE));
    return largest_of_lanes(beside);
}

// Fill the state of a tile where x is nowhere large; say whether it is so.  Then the student's own
// exponential is not needed: w·e⁻ˣ neither underflows nor loses digits.
DEVICE bool gentle_state(const Tile& tile, Real t_max, Real beside, const Heat& heat, State& a) {
    Word<Real> first = two_difference(t_max, beside);
    Real w[PER];
    for (int k = 0; k < PER; ++k) w[k] = weight(two_difference(tile.own[k], t_max), heat);
    Two<Real> sums = over_lanes(summed<0, PER>([&](int k) -> Two<Real> {
        return {w[k], w[k] * quickly(tile.own[k], tile.other[k], first) * heat.inverse};
    }));
    Word<Real> mean = add(first, Real(heat.temperature) * (sums.b / sums.a));
    Real far = 0;
    Three<Real> moments = summed<0, PER>([&](int k) -> Three<Real> {
        bool nothing = tile.own[k] == Real(-INFINITE) && tile.other[k] == Real(-INFINITE);
        // Where one of the two is −∞ that is NaN, the largest there is.
        Real d = difference(two_difference(tile.own[k], tile.other[k]), mean);
        Real x = nothing ? Real(0) : d * heat.inverse;
        far = larger(far, absolute(x));
        Real w_x = w[k] * x;
        return {w_x, w[k] * phi_wide(x), absolute(w_x)};
    });
    // From the pivot the student's maximum follows, if both have digits in common with it.
    bool small = absolute(mean.high) < Real(1e6) * Real(heat.temperature);
    if (!(largest_of_lanes(far) < GENTLE && sums.a > 0 && small)) return false;
    moments = over_lanes(moments);
    a.t_max = t_max;
    a.t_sum = sums.a;
    a.pivot = a.anchor = mean.high;
    a.pivot_low = a.anchor_low = mean.low;
    a.drift = moments.a;
    a.phi = moments.b;
    a.spread = moments.c;
    a.y = a.phi - a.drift;
    // Σ w e⁻ˣ = Σ exp((s − (max t − mean))/T)
    a.s_max = (a.t_max - a.pivot) - a.pivot_low;
    a.s_sum = a.t_sum + a.y;
    a.gap = 0;
    return true;
}

DEVICE Word<Real> ratio_of_sums(Real t_top, Real t_sum, Real s_top, Real s_sum, const Heat& heat) {
    return add(two_difference(t_top, s_top), Real(heat.temperature) * log_of(t_sum / s_sum));
}

// exp((a − b + c)/T)
DEVICE Real exp_sum(Real a, Real b, Word<Real> c, const Heat& heat) {
    Word<Real> apart = two_difference(a, b), sum = two_sum(apart.high, c.high);
    Real low = apart.low + (sum.low + c.low), high = sum.high + low;
    return exp_over(Word<Real>{high, low - (high - sum.high)}, heat);
}

// Sums of w·(d − c) are taken in parts of a tile: all of its classes may be as far apart as numbers
// are, and the sums, which overflowed, belong to a divergence that is a number.
constexpr Real PART = Real(1) / TILE;

// The state of the tile, the same on each lane.
DEVICE State tile_state(const Tile& tile, const Heat& heat) {
    Real t_max = tile.own[0];
    for (int k = 1; k < PER; ++k) t_max = larger(t_max, tile.own[k]);
    t_max = largest_of_lanes(t_max);
    Real beside = beside_of(tile, t_max);
    State a = empty_state();
    if constexpr (SINGLE) {
        if (gentle_state(tile, t_max, beside, heat, a)) return a;
    }
    Real s_max = tile.other[0];
    bool lost = false;
    for (int k = 0; k < PER; ++k) {
        s_max = larger(s_max, tile.other[k]);
        lost |= tile.other[k] == Real(-INFINITE) && tile.own[k] > Real(-INFINITE);
    }
    s_max = largest_of_lanes(s_max);
    Real t_top = top_of(t_max), s_top = top_of(s_max);
    Real w[PER], v[PER];
    for (int k = 0; k < PER; ++k) {
        w[k] = weight(two_difference(tile.own[k], t_top), heat);
        v[k] = weight(two_difference(tile.other[k], s_top), heat);
    }
    Three<Real> totals = over_lanes(summed<0, PER>([&](int k) -> Three<Real> {
        return {w[k], v[k], Real(0)};
    }));
    Real t_sum = totals.a, s_sum = totals.b;
    a.t_max = t_max;
    a.s_max = s_max;
    a.t_sum = t_sum;
    a.s_sum = s_sum;
    a.gap = largest_of_lanes(lost ? 1.0f : 0.0f) > 0 ? INFINITE : 0;
    if (t_sum == 0) return a;

    // About d at the teacher's maximum x is exactly zero where d is constant.
    Word<Real> first = two_difference(t_top, beside);
    Real drift = over_lanes(summed<0, PER>([&](int k) -> Real {
        return w[k] * (PART * quickly(tile.own[k], tile.other[k], first)) * heat.inverse;
    }));
    Word<Real> mean = add(first, Real(heat.temperature) * (drift / (PART * t_sum)));
    Two<Real> residual = over_lanes(summed<0, PER>([&](int k) -> Two<Real> {
        Real w_x = w[k] * (PART * quickly(tile.own[k], tile.other[k], mean)) * heat.inverse;
        return {w_x, absolute(w_x)};
    }));
    Real spread = residual.b;
    a.spread = spread / Wide(PART);

    Word<Real> pivot = {Real(0), Real(0)};
    Real scale = 0;
    if (s_sum > 0) {
        Word<Real> ratio = ratio_of_sums(t_top, t_sum, s_top, s_sum, heat);
        Real kl = difference(mean, ratio) * heat.inverse;  // to a few u
        constexpr Real close = Real(FEW * (SINGLE ? 0x1p-23 : 0x1p-52));
        pivot = choose(absolute(kl) < close, mean, ratio);
        // Where a far class of little weight carries the mean away, all others still have x = 0.
        bool inside = absolute(drift) <= Real(INSIDE) * spread && absolute(kl) < Real(CLOSE);
        pivot = choose(inside, first, pivot);
        scale = exp_sum(s_top, t_top, pivot, heat);
    }
    // w·e⁻ˣ by the student's own exponential: it stays where the teacher's underflows or is zero.
    Three<Real> moments = over_lanes(summed<0, PER>([&](int k) -> Three<Real> {
        Real step = steps(tile.own[k], tile.other[k], pivot), x = clipped(step * heat.inverse);
        Real near = clipped_to_near(x);
        Real w_near = w[k] * near, apart = v[k] * scale - w[k];
        Real w_x = w[k] * (PART * step) * heat.inverse;  // finite where x is not
        // w·φ(x) within NEAR; less w·near it is w·(e⁻ˣ − 1) everywhere.
        // So it is, too, where one of the two is −∞ and the other as low as can be.
        bool inside = absolute(x) < Real(NEAR) && w[k] > 0 && v[k] > 0;
        Real term = inside ? w[k] * phi_near(near) : apart + w_near;
        return {term - w_near, inside ? PART * term : PART * apart + w_x, w_x};
    }));
    a.pivot = pivot.high;
    a.pivot_low = pivot.low;
    a.y = moments.a;
    a.phi = moments.b / Wide(PART);

    bool nearer = absolute(moments.c) < absolute(drift);
    Word<Real> anchor = choose(nearer, pivot, first);
    drift = nearer ? moments.c : drift;
    bool astray = absolute(drift) > spread;
    anchor = choose(astray, mean, anchor);
    a.anchor = anchor.high;
    a.anchor_low = anchor.low;
    a.drift = (astray ? residual.a : drift) / Wide(PART);
    return a;
}

// --- of tiles together ----------------------------------------------------------------------------

DEVICE Wide scale_of(Wide old, Wide now, Wide temperature) {
    if (old == now) return 1;
    return old > -INFINITE || old != old ? exp_over(two_difference(old, now), temperature) : 0;
}

DEVICE Wide moment_of(const State& a, Wide scale, Word<Wide> c, Wide temperature) {
    if (a.t_sum == 0) return 0;
    Wide h = difference(Word<Wide>{a.anchor, a.anchor_low}, c);
    return scale * a.drift + scale * a.t_sum * h / temperature;
}

// y and Φ of a state about another pivot, in the scale of another maximum.
DEVICE Two<Wide> moved(const State& a, Wide scale, Wide t_top, Word<Wide> c, Wide temperature) {
    Wide h = difference(Word<Wide>{a.pivot, a.pivot_low}, c) / temperature;
    if (a.t_sum > 0 && absolute(h) < NEAR) {
        // φ(x + h) = φ(x) + φ(h) + (e⁻ˣ − 1)(e⁻ʰ − 1)
        Wide step = phi_near(h), less = step - h;
        return {scale * (a.y + (a.t_sum + a.y) * less),
                scale * (a.phi + a.t_sum * step + a.y * less)};
    }
    // Far away Σ w e⁻ˣ is the student's mass: the teacher's weights may underflow or be zero.
    Wide mass = 0;
    if (a.s_sum > 0) {
        Word<Wide> apart = two_difference(top_of(a.s_max), t_top);
        Word<Wide> sum = two_sum(apart.high, c.high);
        mass = a.s_sum * exp_over({sum.high, apart.low + (sum.low + c.low)}, temperature);
    }
    Wide y = mass - scale * a.t_sum;
    return {y, y + moment_of(a, scale, c, temperature)};
}

// The value of the lowest lane for which a condition holds.
DEVICE Wide of_first(bool here, Wide value) {
    int first = here ? lane() : 32;
    int lowest = first;
    for (int mask = 1; mask < 32; mask *= 2) {
        int other = int(from_lane(float(lowest), mask));
        lowest = other < lowest ? other : lowest;
    }
    return over_lanes(lane() == lowest ? value : Wide(0));
}

// The state of the classes of all lanes' states together, the same on all lanes.
DEVICE_CALL State merged(const State& a, Wide temperature) {
    State r;
    r.t_max = largest_of_lanes(a.t_max);
    r.s_max = largest_of_lanes(a.s_max);
    Wide t_top = top_of(r.t_max), s_top = top_of(r.s_max);
    Wide scale = scale_of(a.t_max, r.t_max, temperature), t_sums = scale * a.t_sum;
    Two<Wide> sums = over_lanes(
        Two<Wide>{t_sums, a.s_sum * scale_of(a.s_max, r.s_max, temperature)});
    r.t_sum = sums.a;
    r.s_sum = sums.b;
    Wide divisor = r.t_sum > 0 ? r.t_sum : 1;

    // Anchor and pivot of the heaviest part are near the bulk of p.
    bool heaviest = t_sums == largest_of_lanes(t_sums);
    Word<Wide> anchor = {of_first(heaviest, a.anchor), of_first(heaviest, a.anchor_low)};
    Wide drift = over_lanes(moment_of(a, scale, anchor, temperature));
    Word<Wide> mean = add(anchor, temperature * (drift / divisor));
    Wide h = difference(Word<Wide>{a.anchor, a.anchor_low}, mean) / temperature;
    Two<Wide> residual = over_lanes(Two<Wide>{moment_of(a, scale, mean, temperature),
                                              scale * a.spread + t_sums * absolute(h)});
    r.spread = residual.b;
    bool astray = absolute(drift) > r.spread;
    anchor = choose(astray, mean, anchor);
    r.anchor = anchor.high;
    r.anchor_low = anchor.low;
    r.drift = astray ? residual.a : drift;

    Word<Wide> pivot = {of_first(heaviest, a.pivot), of_first(heaviest, a.pivot_low)};
    Wide y = over_lanes(moved(a, scale, t_top, pivot, temperature).a) / divisor;
    if (!(r.t_sum > 0 && r.s_sum > 0)) pivot = {0, 0};
    else if (absolute(y) < CLOSE) pivot = add(pivot, -(temperature * log1p_near(y).log));
    else
        pivot = add(two_difference(t_top, s_top), temperature * log_of(r.t_sum / r.s_sum));
    Two<Wide> both = over_lanes(moved(a, scale, t_top, pivot, temperature));
    r.pivot = pivot.high;
    r.pivot_low = pivot.low;
    r.y = both.a;
    r.phi = both.b;
    r.gap = largest_of_lanes(a.gap);
    return r;
}

// States of tiles come one after another to a warp, and are merged when there are so many of them: each
// lane has one then.  Till then they lie in shared memory, of which two sides have as much as one.
constexpr int GATHERED = DIVERGENCE ? 16 : 32;

// The state of all that was gathered.
DEVICE State all_of(const State* gathered, int count, Wide temperature) {
    sync_warp();
    if (count == 1) return gathered[0];
    return merged(lane() < count ? gathered[lane()] : empty_state(), temperature);
}

// Add a state that is the same on all lanes; return how many there are now.
DEVICE int gather(State* gathered, int count, const State& next, Wide temperature) {
    if (count == GATHERED) {
        State sofar = all_of(gathered, count, temperature);
        sync_warp();
        if (lane() == 0) gathered[0] = sofar;
        count = 1;
    }
    if (lane() == 0) gathered[count] = next;
    return count + 1;
}

// --- of a row -------------------------------------------------------------------------------------

// log(p/q) at the anchor, and its rest: T times a double word, and the offset
struct AtAnchor {
    Word<Wide> apart;
    Wide offset, temperature;

    DEVICE_MEMBER Wide log() const { return (apart.high + apart.low) / temperature + offset; }
    // (q/p)^rate: the product with rate is a double word.
    DEVICE_MEMBER Wide power(Wide rate) const {
        Wide high = -rate * apart.high, low = fused(-rate, apart.high, -high) - rate * apart.low;
        Wide rest = exp_of(-rate * offset);
        // An anchor at a class that q masks is so far away that the product may overflow.
        if (absolute(high) > 1e300) return exp_of(high / temperature) * rest;
        return exp_over(Word<Wide>{high, low}, temperature) * rest;
    }
};

DEVICE AtAnchor at_anchor(const Row& row, Wide temperature) {
    Word<Wide> apart = two_difference(row.anchor, row.pivot);
    apart = two_sum(apart.high, apart.low + (row.anchor_low - row.pivot_low));
    return {apart, row.offset, temperature};
}

DEVICE Row finished(const State& a, Wide temperature) {
    bool valid = a.t_sum > 0 && a.s_sum > 0;
    Wide y = a.y / a.t_sum, kl = a.phi / a.t_sum - log1p_gap(y);
    kl = kl < 0 ? 0 : kl;
    kl = a.gap > 0 ? INFINITE : kl;
    Row row;
    row.kl = valid ? kl : nan_of();
    row.t_max = top_of(a.t_max);
    row.t_scale = 1 / a.t_sum;
    row.s_max = Real(top_of(a.s_max));
    row.s_scale = scale_of(row.s_max, top_of(a.s_max), temperature) / a.s_sum;
    row.pivot = a.pivot;
    row.pivot_low = a.pivot_low;
    row.offset = valid ? log1p_of(y) : nan_of();
    row.anchor = a.anchor;
    row.anchor_low = a.anchor_low;
    row.mean = valid ? a.drift / a.t_sum : nan_of();
    return row;
}
