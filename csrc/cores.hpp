// The cores of the activations: act(z) = scale * core(z) + an affine function of z (kernels/activations.py has the table).
//
// The deviation of an activation from its chord does not see the affine part, so the part that is left is chosen to be
// small and even (or odd) where the activation is nearly linear: SiLU is z/2 + (z/2) tanh(z/2), and the error of its core
// near zero is a rounding of z^2/4, not of z/2. float32 coefficients are minimax fits made for this project
// (weighted rational least squares in 40 digits; the relative error of each is stated).
#pragma once

#include "simd.hpp"

namespace lmn::LMN_ISA {

template <class T>
struct CoreParameters {
    T p0, p1;
    T kink = T(0);  // the slope where two linear pieces meet: torch's differ from activation to activation
};

// A core, and by how much its slope is above the limit that it has far below zero: where an activation is flat there (SiLU, GELU,
// softplus), the activation's slope is a multiple of that, and keeps its digits. Of a NaN both are NaN.
template <class T>
struct Sloped {
    Vec<T> value, slope;
};

inline Vec<float> tanh_of(Vec<float> z) {  // 2.2e-8 on |z| < 9.02, where tanh rounds to 1
    const Vec<float> x = maximum(broadcast(-9.02f), minimum(broadcast(9.02f), z));
    const Vec<float> t = x * x;
    const Vec<float> p =
        (((1.3305495e-8f * t + 2.0573737e-5f) * t + 3.4934444e-3f) * t + 0.13379222f) * t + 0.99999998f;
    const Vec<float> q = (((7.7564772e-7f * t + 3.2821263e-4f) * t + 2.5868830e-2f) * t + 0.46712537f) * t + 1.0f;
    return x * p / q;
}

inline Vec<float> erf_of(Vec<float> z) {  // 1.9e-8 on |z| < 3.92, where erf rounds to 1
    const Vec<float> x = maximum(broadcast(-3.92f), minimum(broadcast(3.92f), z));
    const Vec<float> t = x * x;
    const Vec<float> p =
        ((((2.0465190e-6f * t + 2.8484325e-4f) * t + 3.7715782e-3f) * t + 5.2766423e-2f) * t + 0.19056828f) * t +
        1.1283791f;
    const Vec<float> q =
        ((((3.8052821e-5f * t + 1.1636610e-3f) * t + 1.4981253e-2f) * t + 0.11417263f) * t + 0.50221947f) * t + 1.0f;
    return x * p / q;
}

inline Vec<double> erf_of(Vec<double> z) {
    return each_lane<double>(z, [](double x) { return ::erf(x); });
}

// x = k ln2 + r for x <= 0 (larger x is not asked for): 2^k and expm1(r), from which exp and expm1 follow.
template <class T>
struct Exponential {
    Vec<T> power, expm1_r;
};

inline Exponential<float> exponential(Vec<float> z) {
    const Vec<float> x = maximum(broadcast(-88.0f), z);  // whose k is -127, and the power 0
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec<float> shifted = x * 1.44269504f + kRound;
    const Vec<float> k = shifted - kRound;
    const Vec<float> r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // ln2 in two parts, the first exact in 10 bits
    const Vec<float> h =  // (expm1(r) - r) / r^2, 2.7e-9
        ((((1.9857247e-4f * r + 1.3933597e-3f) * r + 8.3333615e-3f) * r + 4.1666466e-2f) * r + 0.16666667f) * r + 0.5f;
    return {(Vec<float>)(((IntVec<float>)shifted << 23) + 0x3f800000),  // the low bits of shifted hold k
            r + r * r * h};
}

inline Exponential<double> exponential(Vec<double> z) {  // the same; 2e-16, by the Taylor series to r^13
    const Vec<double> x = maximum(broadcast(-709.0), z);  // whose k is -1023
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    const Vec<double> shifted = x * 1.4426950408889634 + kRound;
    const Vec<double> k = shifted - kRound;
    const Vec<double> r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    Vec<double> h = broadcast(1.0 / 6227020800.0);
    constexpr double kInverseFactorials[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                             1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                             1.0 / 24.0,        1.0 / 6.0,        0.5};
    for (const double c : kInverseFactorials) h = h * r + c;
    return {(Vec<double>)(((IntVec<double>)shifted << 52) + 0x3ff0000000000000), r + r * r * h};
}

template <class T>
inline Vec<T> exp_of_negative(Vec<T> z) {
    const Exponential<T> e = exponential(z);
    return e.power * e.expm1_r + e.power;
}

template <class T>
inline Vec<T> expm1_of_negative(Vec<T> z) {
    const Exponential<T> e = exponential(z);
    return e.power * e.expm1_r + (e.power - T(1));
}

inline Vec<double> tanh_of(Vec<double> z) {  // -e / (e + 2) with e = expm1(-2|z|), which keeps its precision near zero
    const Vec<double> e = expm1_of_negative<double>(-2.0 * absolute<double>(z));
    const Vec<double> t = -e / (e + 2.0);
    return z < Vec<double>{} ? -t : t;
}

inline Vec<float> log1p_of_unit(Vec<float> e) {  // e in [0, 1]: 2 atanh(e / (2 + e)), 4.0e-9
    const Vec<float> s = e / (e + 2.0f);
    const Vec<float> t = s * s;
    const Vec<float> h =
        (((0.14089157f * t + 0.13980304f) * t + 0.20012455f) * t + 0.33333157f) * t + 1.0f;
    return 2.0f * s * h;
}

inline Vec<double> log1p_of_unit(Vec<double> e) {
    return each_lane<double>(e, [](double x) { return ::log1p(x); });
}

// tanh, its slope, and 1 + tanh, each with its digits wherever it is small. With e = exp(-2|z|) - 1 the slope is
// 4 (1 + e) / (2 + e)², and 1 - |tanh| is 2 (1 + e) / (2 + e).
template <class T>
struct TanhAt {
    Vec<T> value, slope, plus_one;
};

template <class T>
inline TanhAt<T> tanh_at(Vec<T> z) {
    const Exponential<T> exponent = exponential(Vec<T>(T(-2) * absolute<T>(z)));
    const Vec<T> above = exponent.power * exponent.expm1_r + exponent.power;               // 1 + e
    const Vec<T> e = exponent.power * exponent.expm1_r + (exponent.power - T(1));
    const Vec<T> inverse = T(1) / (e + T(2)), t = -e * inverse, rest = T(2) * above * inverse;
    const auto below = z < Vec<T>{};
    return {below ? -t : t, T(2) * rest * inverse, below ? rest : t + T(1)};
}

// erfc(x) for x >= 0, given exp(-x²): the Chebyshev fit of Numerical Recipes (Press et al., 2nd edition, section 6.2), 1.2e-7.
inline Vec<float> erfc_of_positive(Vec<float> x, Vec<float> gaussian) {
    const Vec<float> t = 1.0f / (0.5f * x + 1.0f);
    Vec<float> p = broadcast(0.17087277f);
    constexpr float kCoefficients[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                                       0.37409196f,  1.00002368f};
    for (const float c : kCoefficients) p = p * t + c;
    // exp(t p - 1.26551223) with an exponent that is at most zero: t <= 1, and p t is below 1.2655 there
    return t * gaussian * exp_of_negative<float>(minimum(Vec<float>{}, t * p - 1.26551223f));
}

inline Vec<double> erfc_of_positive(Vec<double> x, Vec<double>) {
    return each_lane<double>(x, [](double value) { return ::erfc(value); });
}

template <class T>
struct Identity {
    static Vec<T> at(Vec<T> z, CoreParameters<T>) { return z; }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T>) { return {z, broadcast(T(1))}; }
};

template <class T>
struct Relu {
    static Vec<T> at(Vec<T> z, CoreParameters<T>) { return maximum(Vec<T>{}, z); }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> side = z > Vec<T>{} ? broadcast(T(1)) : z < Vec<T>{} ? Vec<T>{} : broadcast(p.kink);
        return {maximum(Vec<T>{}, z), z == z ? side : z};
    }
};

template <class T>
struct Clamp {  // to [p0, p1]
    static Vec<T> at(Vec<T> z, CoreParameters<T> p) {
        return minimum(broadcast(p.p1), maximum(broadcast(p.p0), z));
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> low = broadcast(p.p0), high = broadcast(p.p1);
        const auto inside = (z > low) & (z < high);
        const Vec<T> slope = inside ? broadcast(T(1)) : (z == low) | (z == high) ? broadcast(p.kink) : Vec<T>{};
        return {at(z, p), z == z ? slope : z};
    }
};

template <class T>
struct Tanh {  // tanh(p0 z)
    static Vec<T> at(Vec<T> z, CoreParameters<T> p) { return tanh_of(z * p.p0); }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const TanhAt<T> t = tanh_at<T>(z * p.p0);
        return {t.value, p.p0 * t.slope};
    }
};

template <class T>
struct ZTanh {  // z tanh(p0 z)
    static Vec<T> at(Vec<T> z, CoreParameters<T> p) { return z * tanh_of(z * p.p0); }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const TanhAt<T> t = tanh_at<T>(z * p.p0);
        return {z * t.value, t.plus_one + z * p.p0 * t.slope};
    }
};

template <class T>
struct ZErf {  // z erf(z / sqrt 2)
    static Vec<T> at(Vec<T> z, CoreParameters<T>) { return z * erf_of(z * T(0.70710678118654752440)); }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T>) {
        const Vec<T> e = erf_of(z * T(0.70710678118654752440)), density = exp_of_negative<T>(T(-0.5) * z * z);
        const Vec<T> above = z < Vec<T>{} ? erfc_of_positive(z * T(-0.70710678118654752440), density) : e + T(1);
        return {z * e, above + T(0.79788456080286535588) * z * density};
    }
};

template <class T>
struct ZGeluTanh {  // z tanh(sqrt(2/pi) (z + 0.044715 z^3))
    static Vec<T> at(Vec<T> z, CoreParameters<T>) {
        return z * tanh_of(T(0.79788456080286535588) * z * (T(0.044715) * z * z + T(1)));
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T>) {
        constexpr T c = T(0.79788456080286535588);
        const Vec<T> square = minimum(broadcast(T(1e4)), z * z);  // beyond, the slope of tanh is zero: it must not meet infinity
        const TanhAt<T> t = tanh_at<T>(c * z * (T(0.044715) * square + T(1)));
        const Vec<T> inner = c * (T(3 * 0.044715) * square + T(1));
        return {z * t.value, t.plus_one + z * inner * t.slope};
    }
};

template <class T>
struct Elu {  // z above zero, p0 (exp(z) - 1) below
    static Vec<T> at(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> zero{};
        return z > zero ? z : p.p0 * expm1_of_negative<T>(minimum(zero, z));
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const Exponential<T> e = exponential(minimum(Vec<T>{}, z));
        const Vec<T> below = p.p0 * (e.power * e.expm1_r + (e.power - T(1))), slope = p.p0 * (e.power * e.expm1_r + e.power);
        return {z > Vec<T>{} ? z : below, z > Vec<T>{} ? broadcast(T(1)) : slope};
    }
};

template <class T>
struct Softplus {  // softplus(z) - z/2 = |z|/2 + log1p(exp(-p0 |z|)) / p0; linear above p0 z > p1, as in torch
    static Vec<T> at(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> a = absolute<T>(z);
        const Vec<T> tail = log1p_of_unit(exp_of_negative<T>(-p.p0 * a)) * (T(1) / p.p0);
        return T(0.5) * a + (z * p.p0 > p.p1 ? Vec<T>{} : tail);
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> e = exp_of_negative<T>(-p.p0 * absolute<T>(z)), one = broadcast(T(1));
        const Vec<T> sigmoid = (z > Vec<T>{} ? one : e) / (e + T(1));
        return {at(z, p), z * p.p0 > p.p1 ? one : sigmoid};
    }
};

template <class T>
struct Hardswish {  // z clamp(z + 3, 0, 6) / 6
    static Vec<T> at(Vec<T> z, CoreParameters<T>) {
        return z * minimum(broadcast(T(6)), maximum(Vec<T>{}, z + T(3))) * T(1.0 / 6.0);
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T> p) {
        const Vec<T> between = z * T(1.0 / 3.0) + T(0.5), one = broadcast(T(1));
        return {at(z, p), z <= broadcast(T(-3)) ? Vec<T>{} : z >= broadcast(T(3)) ? one : between};
    }
};

template <class T>
struct Mish {  // z tanh(log1p(e^z)) = z (1 + 2e) / (1 + 2e + 2e^2) with e = e^-z for z > 0, z (e^2 + 2e) / (e^2 + 2e + 2) below
    static Vec<T> at(Vec<T> z, CoreParameters<T>) {
        const Vec<T> e = exp_of_negative<T>(-absolute<T>(z));
        const auto positive = z > Vec<T>{};
        const Vec<T> numerator = positive ? e * T(2) + T(1) : e * (e + T(2));
        const Vec<T> rest = positive ? e * e * T(2) : broadcast(T(2));
        return z * numerator / (numerator + rest);
    }
    static Sloped<T> with_slope(Vec<T> z, CoreParameters<T>) {
        const Vec<T> e = exp_of_negative<T>(-absolute<T>(z)), one = broadcast(T(1));
        const auto positive = z > Vec<T>{};
        const Vec<T> numerator = positive ? e * T(2) + T(1) : e * (e + T(2));
        const Vec<T> rest = positive ? e * e * T(2) : broadcast(T(2));
        const Vec<T> whole = numerator + rest, t = numerator / whole;  // tanh(softplus(z))
        const Vec<T> sigmoid = (positive ? one : e) / (e + T(1));
        return {z * t, t + z * sigmoid * (rest * (whole + numerator) / (whole * whole))};
    }
};

// The slope of a core far below zero, which Sloped is told from: by the core's index.
inline constexpr double kSlopeLimits[] = {0, 0, 0, 0, -1, -1, -1, 0, -0.5, 0, 0};

// All of them, in the order of kernels/activations.py: CORES.
#define LMN_CORES(X) \
    X(Identity) X(Relu) X(Clamp) X(Tanh) X(ZTanh) X(ZErf) X(ZGeluTanh) X(Elu) X(Softplus) X(Hardswish) X(Mish)

}  // namespace lmn::LMN_ISA
