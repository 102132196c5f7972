// A list of heads, and the choice of one by its number.
#pragma once

#include "common/head.h"

namespace trpo_fast {

template <class... All>
struct HeadList {
  static constexpr int kCount = sizeof...(All);
};

template <class List, class Last>
struct Appended;
template <class... All, class Last>
struct Appended<HeadList<All...>, Last> {
  using type = HeadList<All..., Last>;
};
template <class List, class Last>
using Append = typename Appended<List, Last>::type;

template <class F, class First, class... Rest>
TRPO_FAST_HOST_DEVICE auto with_head_from(const Head& head, int at, F&& f,
                                          HeadList<First, Rest...>) {
  if constexpr (sizeof...(Rest) > 0) {
    if (head.kind != at) return with_head_from(head, at + 1, f, HeadList<Rest...>());
  }
  First chosen;
  static_cast<Head&>(chosen) = head;
  return f(chosen);
}

}  // namespace trpo_fast
