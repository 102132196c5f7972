// All policy heads, and how one is chosen: the simple ones, and the joint head, made of them.
#pragma once

#include "common/beta.h"
#include "common/head_list.h"
#include "common/joint.h"
#include "common/simple_heads.h"

namespace trpo_fast {

// Each at the number by which Python names it (HEAD_CODES).
using Heads = Append<SimpleHeads, Joint>;

// f(the head as its own struct): chosen here, once for all the rows that f works on.
template <class F>
TRPO_FAST_HOST_DEVICE auto with_head(const Head& head, F&& f) {
  return with_head_from(head, 0, f, Heads());
}

struct HeadFacts {
  bool categories, normal_noise, shared_metric;
};

// What is true of a kind of head, whatever its sizes.
TRPO_FAST_HOST_DEVICE HeadFacts facts_of(int kind) {
  return with_head({kind, 0, 0, nullptr}, [](auto h) {
    return HeadFacts{h.kCategories, h.kNormalNoise, h.kSharedMetric};
  });
}

// Columns that the last layer of this head has.
TRPO_FAST_HOST_DEVICE Index width_of(const Head& head) {
  return with_head(head, [](auto h) { return h.width(); });
}

// Its log stds that are parameters; what is kept of a row's metric; columns of a mask.
TRPO_FAST_HOST_DEVICE Index scales_of(const Head& head) {
  return with_head(head, [](auto h) { return h.scales(); });
}
TRPO_FAST_HOST_DEVICE Index metric_width_of(const Head& head) {
  return with_head(head, [](auto h) { return h.kSharedMetric ? 0 : h.metric_width(); });
}
TRPO_FAST_HOST_DEVICE Index mask_width_of(const Head& head) {
  return with_head(head, [](auto h) { return h.mask_width(); });
}

}  // namespace trpo_fast
