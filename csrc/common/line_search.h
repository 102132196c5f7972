// Which candidates along x an update tries, and which it takes (Schulman et al. 2015, appendix C):
// trpo_fast/update/line_search.py in C++, for every device.
#pragma once

#include <cmath>

#include "common/update_options.h"

namespace trpo_fast {

constexpr double kAim = 0.97;     // of the region's KL: where a candidate is to land
constexpr double kEnough = 0.93;  // of it: what is near enough
constexpr int kSized = 3;         // candidates sized so, at most
constexpr double kGrowth = 10;    // of a candidate over the last, at most
// Of the best candidate's improvement in what the slope promised: outside, the surrogate is no line
// or parabola, and the damped rule's own candidates are measured too.
constexpr double kLeastRatio = 0.75, kMostRatio = 1.2;
constexpr double kLeastShare = 0.01;  // of x'Fx in x'(F + damping I)x: less is rounding

// What is known along x, which solves (F + damping I) x = g / |g|.
struct Line {
  double gradient_norm;  // |g|
  double slope;          // x'g / |g|
  double quadratic;      // x'(F + damping I)x
  double square;         // x'x
};

// Give `judge` what the candidate at `step` measured, then ask `next` for another.
struct LineSearch {
  Line line;
  double step;  // length along x of the candidate to try
  int tried;    // candidates before it
  bool finite;  // any candidate's figures were
  bool found;   // an acceptable candidate; the best one's length, KL and improvement:
  double best, best_kl, improvement;
  double refused;            // the shortest length that was not acceptable
  double kl;                 // of the last candidate
  bool accepted;             // the last candidate was acceptable
  bool sizing;               // candidates are for the boundary
  double region;             // the KL there
  double before, before_kl;  // length and KL of the sized candidate before the last; 0: none
  double damped;             // length of the damped rule's first candidate
  int damped_index;          // of its next one
  bool damped_done;          // it would have ended
};

// Of x, which solves (F + damping I) x = g / |g|; quadratic: x'(F + damping I)x.
TRPO_FAST_HOST_DEVICE double step_scale(const UpdateOptions& o, double gradient_norm,
                                        double quadratic) {
  // scale^2 x'(F + dI)x / 2 = max_kl
  if (o.constraint == Constraint::hard) return std::sqrt(2 * o.max_kl / quadratic);
  // maximises g.sx - beta s^2 x'(F + dI)x / 2
  if (o.constraint == Constraint::penalty) return gradient_norm / o.beta;
  return gradient_norm;  // theta + lr (F + dI)^-1 g
}

TRPO_FAST_HOST_DEVICE bool acceptable(const UpdateOptions& o, double improvement, double kl,
                                      double expected) {
  if (o.constraint == Constraint::none) return true;
  if (kl < -o.max_kl) return false;  // negative beyond rounding: no KL
  if (o.constraint == Constraint::penalty) {
    improvement -= o.beta * kl;
  } else if (kl > o.max_kl) {
    return false;
  }
  return improvement > 0 && improvement >= o.accept_ratio * expected;
}

TRPO_FAST_HOST_DEVICE LineSearch line_search(const UpdateOptions& o, const Line& line) {
  LineSearch s{};
  s.line = line;
  s.improvement = -INFINITY;
  s.refused = INFINITY;
  s.step = s.damped = o.lr * step_scale(o, line.gradient_norm, line.quadratic);
  s.sizing =
      o.step_size == StepSize::boundary && o.constraint == Constraint::hard && o.max_backtracks > 0;
  if (!s.sizing) return s;
  const double shrink = o.lr < 1 ? o.lr : 1;  // a longer step would leave the region
  s.region = shrink * shrink * o.max_kl;
  const double fisher_quadratic = line.quadratic - o.damping * line.square;  // x'Fx
  double form = line.quadratic;
  // never shorter than the damped rule's
  if (fisher_quadratic > kLeastShare * form) form = std::fmin(form, fisher_quadratic / kAim);
  s.step = shrink * std::sqrt(2 * o.max_kl / form);
  return s;
}

// What the model promises of the candidate at `step`.
TRPO_FAST_HOST_DEVICE double expected_gain(const UpdateOptions& o, const LineSearch& s) {
  const double gain = s.step * s.line.slope * s.line.gradient_norm;
  if (o.constraint != Constraint::penalty) return gain;
  return gain - 0.5 * o.beta * s.step * s.step * s.line.quadratic;
}

// Takes note of the candidate at `step`; whether it is the best acceptable one so far.
TRPO_FAST_HOST_DEVICE bool judge(const UpdateOptions& o, LineSearch& s, double improvement,
                                 double kl) {
  const bool measured = std::isfinite(improvement) && std::isfinite(kl);
  s.finite |= measured;
  s.kl = measured ? kl : NAN;
  s.accepted = measured && acceptable(o, improvement, kl, expected_gain(o, s));
  if (!s.accepted) {
    if (s.step < s.refused) s.refused = s.step;
    return false;
  }
  s.damped_done |= !s.sizing || s.step == s.damped;
  if (!(improvement > s.improvement)) return false;
  s.found = true;
  s.best = s.step;
  s.best_kl = kl;
  s.improvement = improvement;
  return true;
}

// The best candidate's improvement over what the slope of the line promised of it.
TRPO_FAST_HOST_DEVICE double best_ratio(const LineSearch& s) {
  return s.improvement / (s.best * s.line.slope * s.line.gradient_norm);
}

// Whether the surrogate should be better at `length` than at the best candidate: by the parabola
// through that and the slope of the line.
TRPO_FAST_HOST_DEVICE bool promises_more(const LineSearch& s, double length) {
  if (!s.found) return true;
  return length > s.best && (1 - best_ratio(s)) * (1 + length / s.best) < 1;
}

// The length at which the KL should be kAim of the region's; 0 where it is not worth a try.
TRPO_FAST_HOST_DEVICE double sized_length(const UpdateOptions& o, const LineSearch& s) {
  if (s.tried >= kSized || !(s.kl > 0)) return 0;
  if (s.kl <= o.max_kl && (!s.accepted || s.kl >= kEnough * s.region)) return 0;
  double power = 2;
  if (s.before > 0) {  // a power law through both
    const double through = std::log(s.kl / s.before_kl) / std::log(s.step / s.before);
    power = through > 1 ? through : 1;
  }
  double length = s.step * std::pow(kAim * s.region / s.kl, 1 / power);
  if (length > kGrowth * s.step) length = kGrowth * s.step;
  return length < s.refused && promises_more(s, length) ? length : 0;
}

// Whether the damped rule's candidate of this length may be better than the best so far.
TRPO_FAST_HOST_DEVICE bool damped_may_win(const UpdateOptions& o, const LineSearch& s,
                                          double length) {
  if (!(length < s.refused)) return false;
  if (!s.found) return true;
  // A KL that is convex along x is beyond max_kl there.
  if (length == s.best || s.best_kl * length > o.max_kl * s.best) return false;
  const double ratio = best_ratio(s);
  return length > s.best || ratio < kLeastRatio || ratio > kMostRatio;
}

// Goes on with the damped rule's candidates.
TRPO_FAST_HOST_DEVICE bool next_damped(const UpdateOptions& o, LineSearch& s) {
  for (; s.damped_index <= o.max_backtracks; ++s.damped_index) {
    const double length = s.damped * std::pow(o.backtrack_coeff, double(s.damped_index));
    if (damped_may_win(o, s, length)) {
      s.step = length;
      return true;
    }
    if (s.found && length < s.best) return false;
  }
  return false;
}

// Whether another candidate is to be tried, then at `step`.
TRPO_FAST_HOST_DEVICE bool next(const UpdateOptions& o, LineSearch& s) {
  ++s.tried;
  if (o.constraint == Constraint::none || s.tried > o.max_backtracks) return false;
  if (s.sizing) {
    const double length = sized_length(o, s);
    if (length > 0) {
      s.before = s.step;
      s.before_kl = s.kl;
      s.step = length;
      return true;
    }
    s.sizing = false;
  }
  return !s.damped_done && next_damped(o, s);
}

}  // namespace trpo_fast
