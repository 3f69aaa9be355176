// Divergences of rows of logits, with their gradients: `kldiv.formulas.logits`.
//
// A team of warps has a row, or a part of its classes.  The work has phases that leave their results
// in device memory: one launch runs all of them where a row has one team, and one launch each where
// several teams share a row.  Nothing is added atomically: results are the same every time.
//
// DIVERGENCE is one of those below.  The student's logits and their gradient are of TYPE_S, the
// teacher's of TYPE_T; gradients are contiguous.

// As `kldiv.kernels.spelling.DIVERGENCES` numbers them.
enum {
    KL = 0, SHANNON = 1, TOTAL_VARIATION = 2, HELLINGER = 3, MIXTURE = 4, JEFFREYS = 5, ALPHA = 6
};
enum Phase { STATES = 1, FINISH = 2, SUMS = 4, VALUES = 8, GRADIENTS = 16 };
enum Side { STUDENT = 1, TEACHER = 2, GRADIENT_S = 3, GRADIENT_T = 4 };

// Sums over classes.
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

struct Job {
    Table<4> table;  // [1 + 4, STRIDES + AXES], arrays of `Side`; an address of 0 is none
    // phases: bits of `Phase` that this launch runs; parts: of a row; team: warps of a team; sides:
    // states of a row, 2 for the student's gradient of a divergence that takes sums, else 1
    long long phases, rows, classes, parts, team, sides;
    const unsigned char* keep;   // [rows], 0 where a row is left out; or 0, where all are kept
    const Wide* factors;         // [rows] or [1], gradient in each row's divergence
    long long factor_step;       // 1; or 0, where one factor is all rows'
    const Wide* temperatures;    // [rows] or [1]
    long long temperature_step;  // 1; or 0, where one temperature is all rows'
    State* states;               // [teams, sides, parts], room: states of each team's row
    Row* known;                  // [teams, sides], room: constants of each team's row
    Sums<Wide>* sums;            // [teams, parts], room: sums that `add_sums` makes
    Wide* values;                // [rows], output: each row's divergence
    Wide numbers[4];             // of the divergence: `kldiv.kernels.spelling.Numbered`

    // One of them as a side sees it, 0 the teacher's and 1 the student's.
    DEVICE_MEMBER Wide number(int which, int side) const { return numbers[which ^ side]; }
};

// A row of logits as one team sees it.
struct View {
    const Job& job;
    long long row, slot;  // the slot is the place of its team in `states`, `known` and `sums`
    Heat heat;
    long long first, last;  // the part's classes
    int member, team;       // this warp's number in its team, and the team's number of warps

    template <class T>
    DEVICE_MEMBER Real load(int which, const char* base, long long k) const {
        return read((const T*)(base + k * job.table.stride(which, job.table.axes() - 1)));
    }
    DEVICE_MEMBER const char* base(int which) const {
        return job.table.at(which, row, job.table.axes() - 1);
    }
    DEVICE_MEMBER void sync() const {
        if (team == 1) sync_warp();
        else sync_block();
    }
    DEVICE_MEMBER State* state(int side, long long part) const {
        return job.states + (slot * job.sides + side) * job.parts + part;
    }
    DEVICE_MEMBER Row* known(int side) const { return job.known + slot * job.sides + side; }
    DEVICE_MEMBER Sums<Wide>* sums(long long part) const {
        return job.sums + slot * job.parts + part;
    }
    DEVICE_MEMBER bool leads() const { return member == 0 && lane() == 0; }
};

// The logits of a side and the other in a tile; beyond the end both are masked.
template <class OWN, class OTHER>
DEVICE void load_tile(const View& view, int own_side, const char* own, int other_side,
                      const char* other, long long start, Tile& tile) {
    for (int k = 0; k < PER; ++k) {
        long long at = start + 32 * k + lane();
        bool there = at < view.last;
        tile.own[k] = there ? view.load<OWN>(own_side, own, at) : Real(-INFINITE);
        tile.other[k] = there ? view.load<OTHER>(other_side, other, at) : Real(-INFINITE);
    }
}

// --- the phases -----------------------------------------------------------------------------------

// Merge the states that the warps of a team have gathered, and leave the result.
DEVICE void leave_state(const View& view, const State* gathered, int count, int side) {
    SHARED State of_warps[2][8];
    Wide temperature = view.heat.temperature;
    State found = count ? all_of(gathered, count, temperature) : empty_state();
    if (view.team > 1) {
        if (lane() == 0) of_warps[side][view.member] = found;
        sync_block();
        if (view.member) return;
        found = lane() < view.team ? of_warps[side][lane()] : empty_state();
        found = merged(found, temperature);
    }
    if (lane() == 0) *view.state(side, part()) = found;
}

DEVICE void find_states(const View& view) {
    SHARED State gathered[DIVERGENCE ? 2 : 1][8][GATHERED];
    const char *s = view.base(STUDENT), *t = view.base(TEACHER);
    int sides = DIVERGENCE ? int(view.job.sides) : 1, count = 0;
    for (long long start = view.first + (long long)view.member * TILE; start < view.last;
         start += (long long)view.team * TILE) {
        int before = count;
#pragma unroll 1
        for (int side = 0; side < sides; ++side) {
            Tile tile;  // read again for the other side: both together spill registers
            if (side) load_tile<TYPE_S, TYPE_T>(view, STUDENT, s, TEACHER, t, start, tile);
            else load_tile<TYPE_T, TYPE_S>(view, TEACHER, t, STUDENT, s, start, tile);
            State next = tile_state(tile, view.heat);
            count = gather(gathered[side][warp()], before, next, view.heat.temperature);
        }
    }
#pragma unroll 1
    for (int side = 0; side < sides; ++side)
        leave_state(view, gathered[side][warp()], count, side);
}

DEVICE void finish_row(const View& view) {
    if (view.member != 0) return;
    for (int side = 0; side < view.job.sides; ++side) {
        Wide temperature = view.heat.temperature;
        State found = *view.state(side, 0);
        if (view.job.parts > 1) {
            State mine = empty_state();
            for (long long from = 0; from < view.job.parts; from += 31) {
                // The first lane has the state found before, the others 31 more.
                long long part = from + lane() - 1;
                bool there = lane() > 0 && part < view.job.parts;
                State next = there ? *view.state(side, part) : empty_state();
                mine = merged(lane() ? next : mine, temperature);
            }
            found = mine;
        }
        if (lane() == 0) *view.known(side) = finished(found, temperature);
    }
}

// The constants of a row as elements need them, seen from a side.
struct Constants {
    Real t_top, t_scale, s_top, s_scale, offset, mean, behind, masked, gap;
    Word<Real> pivot, anchor;
    // Of those that take sums: see the divergences.
    Real first, second, third, fourth;       // its numbers
    Real theta, rest, kappa;                 // of the mixture at the anchor
    Real of_log, of_rise, of_share;          // weights of the parts of a mixture's u
    Real power, half_log, t_root, s_root;    // of p^α q^κ

    DEVICE_MEMBER Real p(Real own, const Heat& heat) const {
        return weight(two_difference(own, t_top), heat) * t_scale;
    }
    DEVICE_MEMBER Real q(Real other, const Heat& heat) const {
        return weight(two_difference(other, s_top), heat) * s_scale;
    }
    // log(p/q)
    DEVICE_MEMBER Real log_ratio(Real own, Real other, const Heat& heat) const {
        return deviation(own, other, pivot, heat) + offset;
    }
};

DEVICE Constants constants_of(const Row& row, const Heat& heat) {
    Constants c;
    Wide left, inverse = heat.inverse;
    c.t_top = Real(row.t_max);
    c.t_scale = Real(row.t_scale);
    c.s_top = Real(row.s_max);
    c.s_scale = Real(row.s_scale);
    c.pivot = narrowed(row.pivot, row.pivot_low, left);
    c.offset = Real(row.offset - left * inverse);
    c.anchor = narrowed(row.anchor, row.anchor_low, left);
    c.mean = Real(row.mean * heat.temperature + left);
    c.behind = Real(left * inverse);
    c.masked = row.kl == row.kl ? Real(0) : Real(row.kl);
    c.gap = row.kl == INFINITE ? Real(nan_of()) : Real(0);
    return c;
}

// (q − p), by p·(e^(−x) − 1) where they are close
DEVICE Real excess(Real t, Real s, const Constants& c, const Heat& heat) {
    Real p = c.p(t, heat), x = c.log_ratio(t, s, heat);
    return absolute(x) < GENTLE ? p * fall(x) : c.q(s, heat) - p;
}

// p·(x − Σ p x), divided by T at last
DEVICE Real slope(Real t, Real s, const Constants& c, const Heat& heat) {
    Real step = clipped(steps(t, s, c.anchor) - c.mean);
    return t == Real(-INFINITE) ? c.masked : c.p(t, heat) * (step + c.gap) * heat.inverse;
}

// Call a function with each class of the part, its logits and its place in a gradient.
template <class F>
DEVICE void for_each_class(const View& view, const F& function) {
    const char *s = view.base(STUDENT), *t = view.base(TEACHER);
    long long step = 32LL * view.team;
#pragma unroll(DIVERGENCE || !SINGLE ? 1 : 2)
    for (long long k = view.first + 32LL * view.member + lane(); k < view.last; k += step)
        function(view.load<TYPE_S>(STUDENT, s, k), view.load<TYPE_T>(TEACHER, t, k),
                 view.row * view.job.classes + k);
}
