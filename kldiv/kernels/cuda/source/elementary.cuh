// Numbers: loads and stores of every dtype, double words, exp, and series without cancellation.
//
// Real is the dtype of the elements, Wide that of the numbers of whole rows.  The compiler is told
// not to fuse products with sums: where that is safe, the source says `fused`.

typedef REAL Real;
typedef double Wide;

constexpr bool SINGLE = sizeof(Real) == 4;
#define INFINITE of_bits(0x7ff0000000000000LL)  // no literal has it, and folded all the same
constexpr Real LOWEST = SINGLE ? Real(-3.4028234663852886e38) : Real(-1.7976931348623157e308);

DEVICE Real infinity() { return Real(INFINITE); }
DEVICE Wide nan_of() { return of_bits(0x7ff8000000000000LL); }

// --- memory ---------------------------------------------------------------------------------------

struct Of16 { Half bits; };    // IEEE half precision
struct Of16B { BFloat bits; };  // bfloat16

DEVICE Real read(const float* at) { return Real(*at); }
DEVICE Real read(const double* at) { return Real(*at); }
DEVICE Real read(const Of16* at) { return Real(of_half(at->bits)); }
DEVICE Real read(const Of16B* at) { return Real(of_bits(int(at->bits) << 16)); }

// To float32, rounded to odd: rounding once more, to fewer bits, is then as good as rounding once.
DEVICE float odd(float x) { return x; }
DEVICE float odd(double x) {
    float cut = to_zero(x);
    return Wide(cut) != x && x == x ? of_bits(bits(cut) | 1) : cut;
}

DEVICE void write(float* at, Real x) { *at = float(x); }
DEVICE void write(double* at, Real x) { *at = double(x); }
DEVICE void write(Of16* at, Real x) { at->bits = half_of(odd(x)); }
DEVICE void write(Of16B* at, Real x) {
    float narrow = odd(x);
    unsigned i = unsigned(bits(narrow));
    i += 0x7fffu + ((i >> 16) & 1u);
    at->bits = BFloat(narrow == narrow ? i >> 16 : 0x7fc0u);
}

// --- selections that keep NaN ---------------------------------------------------------------------

template <class F>
DEVICE F larger(F a, F b) { return b > a || b != b ? b : a; }

template <class F>
DEVICE F absolute(F x) { return x < 0 ? -x : x; }

DEVICE Real floored(Real x) { return x < LOWEST ? LOWEST : x; }

// A masked class has weight 0, and 0·∞ would be NaN.
DEVICE Real clipped(Real x) {
    x = x < LOWEST ? LOWEST : x;
    return x > -LOWEST ? -LOWEST : x;
}

DEVICE Real clipped_to_near(Real x) {
    Real near = Real(NEAR);
    return x < -near ? -near : x > near ? near : x;
}

template <class F>
DEVICE F top_of(F maximum) { return maximum == F(-INFINITE) ? F(0) : maximum; }

// --- double words ---------------------------------------------------------------------------------

template <class F>
struct Word { F high, low; };

template <class F>
DEVICE Word<F> two_sum(F a, F b) {
    F high = a + b, back = high - a;
    return {high, (a - (high - back)) + (b - back)};
}

template <class F>
DEVICE Word<F> two_difference(F a, F b) {
    F high = a - b, back = high - a;
    return {high, (a - (high - back)) - (b + back)};
}

template <class F>
DEVICE Word<F> add(Word<F> a, F b) {
    Word<F> sum = two_sum(a.high, b);
    F low = sum.low + a.low, high = sum.high + low;
    return {high, low - (high - sum.high)};
}

template <class F>
DEVICE F difference(Word<F> a, Word<F> b) {
    Word<F> low = two_difference(a.low, b.low);
    return ((a.high - b.high) + low.high) + low.low;
}

template <class F>
DEVICE Word<F> choose(bool first, Word<F> a, Word<F> b) { return first ? a : b; }

// A double word of Wide as one of Real, and the remainder.
DEVICE Word<Real> narrowed(Wide c, Wide c_low, Wide& rest) {
    Real high = Real(c), low = Real((c - high) + c_low);
    rest = ((c - high) - low) + c_low;
    return {high, low};
}

// --- series ---------------------------------------------------------------------------------------

template <class F>
DEVICE F phi_near(F x) { return x * x * phi_series(x); }  // |x| ≤ NEAR

template <class F>
struct Log1p { F log, gap; };  // log(1 + y) and y − log(1 + y)

template <class F>
DEVICE Log1p<F> log1p_near(F y) {  // −½ < y < 1
    F z = y / (F(2) + y), square = z * z;
    F rest = z * square * artanh_series(square);
    return {z + z + rest, y * z - rest};
}

template <class F>
DEVICE bool is_near(F y) { return y > F(-0.5) && y < F(1); }

template <class F>
DEVICE F log1p_of(F y) { return is_near(y) ? log1p_near(y).log : log_of(F(1) + y); }

template <class F>
DEVICE F log1p_gap(F y) { return is_near(y) ? log1p_near(y).gap : y - log_of(F(1) + y); }

// --- exp ------------------------------------------------------------------------------------------

// The constants of T that exp((high + low)/T) takes: the temperature divides the small rest of an
// exponent, and log 2 is multiplied by it, so that nothing is rounded that e to its power would
// magnify.
struct Heat {
    Real inverse, per, ln2, ln2_low, gone;
    Wide temperature;
};

DEVICE Heat heat_of(Wide temperature) {
    Wide high = temperature * LN2;
    Wide low = fused(temperature, LN2, -high) + temperature * LN2_LOW;
    // A head with so few bits that its product with an exponent of 2 is exact.
    Wide split = high * (SINGLE ? 274877906945.0 : 4097.0);
    Wide head = split - (split - high);
    return {Real(1 / temperature), Real(LOG2_E / temperature), Real(head),
            Real((high - head) + low), Real((SINGLE ? -110 : -760) * temperature), temperature};
}

// x·2ᵏ, rounded once
DEVICE float scaled(float x, int k) {
    int half = k >> 1;
    return x * of_bits((half + 127) << 23) * of_bits((k - half + 127) << 23);
}
DEVICE double scaled(double x, long long k) {
    long long half = k >> 1;
    return x * of_bits((half + 1023) << 52) * of_bits((k - half + 1023) << 52);
}

// Added to a float this puts its integer part into the lowest bits.
template <class F> struct Rounding;
template <> struct Rounding<float> {
    static constexpr float shift = 12582912.0f;
    static constexpr int zero = 0x4B400000;
};
template <> struct Rounding<double> {
    static constexpr double shift = 6755399441055744.0;
    static constexpr long long zero = 0x4338000000000000LL;
};

// exp((high + low)/T) where it does not overflow
DEVICE Real exp_reduced(Real high, Real low, const Heat& heat) {
    Real shifted = fused(high, heat.per, Rounding<Real>::shift);
    Real k = shifted - Rounding<Real>::shift;
    Real r = (fused(k, -heat.ln2_low, fused(k, -heat.ln2, high)) + low) * heat.inverse;
    Real value = fused(r * r, exp_rest(r), r) + Real(1);
    return scaled(value, bits(shifted) - Rounding<Real>::zero);
}

// the same for high ≤ 0, however low
DEVICE Real weight(Word<Real> x, const Heat& heat) {
    bool under = x.high < heat.gone;
    return exp_reduced(under ? heat.gone : x.high, under ? Real(0) : x.low, heat);
}

// the same for any x: no more than e⁸⁸ or e⁷⁰⁹, so never infinite
DEVICE Real exp_over(Word<Real> x, const Heat& heat) {
    Real most = Real((SINGLE ? 88 : 709) * heat.temperature);
    bool over = x.high > most;
    return weight({over ? most : x.high, over ? Real(0) : x.low}, heat);
}

DEVICE Wide exp_over(Word<Wide> x, Wide temperature) {
    x = two_sum(x.high, x.low);
    Wide quotient = x.high / temperature;
    Wide rest = (fused(-quotient, temperature, x.high) + x.low) / temperature;
    return absolute(quotient) < 1000 ? exp_of(quotient) * (1 + rest) : exp_of(quotient);
}

DEVICE Real exp_of_real(Real x) {
    constexpr Real least = SINGLE ? Real(-104) : Real(-746), most = SINGLE ? Real(89) : Real(710);
    // The head of log 2, whose products with exponents are exact, and the rest.
    constexpr Real head = Real(SINGLE ? LN2_HIGH_32 : LN2_HIGH_64);
    constexpr Real tail = Real(SINGLE ? LN2_LOW_32 : LN2_LOW_64);
    const Heat one = {Real(1), Real(LOG2_E), head, tail, Real(0), 1.0};
    x = x < least ? least : x;
    return exp_reduced(x > most ? most : x, Real(0), one);
}

// 2ᵏ, r and eʳ − 1 − r, where e⁻ˣ = 2ᵏ·eʳ; k is 0 for |x| < 1
struct Wide32 { float power, k, r, rest; };

DEVICE Wide32 wide_32(float x) {
    float shifted = fused(-x, float(LOG2_E), Rounding<float>::shift);
    shifted = absolute(x) < 1.0f ? Rounding<float>::shift : shifted;
    float k = shifted - Rounding<float>::shift;
    float r = fused(k, -float(LN2_LOW_32), fused(k, -float(LN2_HIGH_32), -x));
    int exponent = bits(shifted) - (Rounding<float>::zero - 127);
    return {of_bits(exponent << 23), k, r, r * r * exp_rest_wide(r)};
}

// φ(x) = e⁻ˣ − 1 + x ≥ 0 for |x| < 80
DEVICE float phi_wide(float x) {
    Wide32 e = wide_32(x);
    float less = e.power - 1.0f;
    // 2ᵏ(1 + r + rest) − 1 − (r + k log 2): no two large terms cancel.
    return fused(e.power, e.rest, fused(less, e.r, fused(e.k, -float(LN2), less)));
}
DEVICE double phi_wide(double x) { return x; }  // not used

// e⁻ˣ − 1 for |x| below GENTLE
DEVICE float fall(float x) {
    Wide32 e = wide_32(x);
    return fused(e.power, e.r + e.rest, e.power - 1.0f);
}
DEVICE double fall(double x) { return phi_near(x) - x; }

constexpr Real GENTLE = SINGLE ? Real(8) : Real(NEAR);

// --- sums -----------------------------------------------------------------------------------------

// The sum of a few terms in pairs: many equal ones are added exactly, as halves are.
template <int FIRST, int COUNT, class F>
DEVICE auto summed(const F& term) {
    if constexpr (COUNT == 1) return term(FIRST);
    else return summed<FIRST, COUNT / 2>(term) + summed<FIRST + COUNT / 2, COUNT - COUNT / 2>(term);
}

template <class F>
struct Two {
    F a, b;
    DEVICE_MEMBER Two operator+(const Two& o) const { return {a + o.a, b + o.b}; }
};
template <class F>
struct Three {
    F a, b, c;
    DEVICE_MEMBER Three operator+(const Three& o) const { return {a + o.a, b + o.b, c + o.c}; }
};

template <class F>
DEVICE Two<F> from_lane(Two<F> x, int mask) { return {from_lane(x.a, mask), from_lane(x.b, mask)}; }
template <class F>
DEVICE Three<F> from_lane(Three<F> x, int mask) {
    return {from_lane(x.a, mask), from_lane(x.b, mask), from_lane(x.c, mask)};
}

// The sum over the lanes of a warp, the same on all of them.
template <class V>
DEVICE V over_lanes(V x) {
    for (int mask = 1; mask < 32; mask *= 2) x = x + from_lane(x, mask);
    return x;
}

template <class F>
DEVICE F largest_of_lanes(F x) {
    for (int mask = 1; mask < 32; mask *= 2) x = larger(x, from_lane(x, mask));
    return x;
}
