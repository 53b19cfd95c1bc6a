#include "plan.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace latency {

Plan plan_trials(const std::vector<Class>& classes, int rounds, uint64_t seed) {
  const int count = static_cast<int>(classes.size());
  std::mt19937_64 random(seed);
  std::vector<int32_t> owner_of_place(count * kPlaces);
  for (size_t place = 0; place < owner_of_place.size(); ++place) owner_of_place[place] = place % count;
  std::shuffle(owner_of_place.begin(), owner_of_place.end(), random);

  Plan plan;
  std::vector<std::vector<int32_t>> places_of(count);
  for (size_t place = 0; place < owner_of_place.size(); ++place) {
    const Class& owner = classes[owner_of_place[place]];
    plan.words.insert(plan.words.end(), owner.words.begin(), owner.words.end());
    places_of[owner_of_place[place]].push_back(static_cast<int32_t>(place));
  }

  std::vector<int32_t> round(count);
  std::iota(round.begin(), round.end(), 0);
  for (int i = 0; i < rounds; ++i) {
    std::shuffle(round.begin(), round.end(), random);
    for (const int32_t owner : round) {
      plan.owners.push_back(owner);
      plan.places.push_back(places_of[owner][random() % kPlaces]);
      plan.naps.push_back(static_cast<uint32_t>(random()));
    }
  }
  return plan;
}

}  // namespace latency
