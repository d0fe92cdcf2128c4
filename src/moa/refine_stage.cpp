#include "moa/refine_stage.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <set>
#include <sstream>

#include "core/error.h"
#include "moa/search_stage.h"

namespace polyspan {
namespace {

// A round's choices are expected by these doubts in turn; after the first of each, some heads, drawn at random, stay as they are.
constexpr double kDoubts[] = {2, 1, 0.5, 0, 3, 1.5};
constexpr int64_t kChoices = 24;
constexpr size_t kReferences = 24;  // probes that change next to nothing
constexpr double kLeftOut = 0.4;    // of the heads
constexpr double kEnough = 0.5;     // of its standard error: by how much a choice must be better than the best so far

// What most of these probes lose on each sample from the first on. They change next to nothing, and so this is what the plan
// loses, with less of rounding's noise than a pass of its own.
void add_medians(std::span<const std::vector<double>> of_probes, std::span<const size_t> probes,
                 std::vector<double>& medians) {
  while (medians.size() < of_probes[probes[0]].size()) {
    std::vector<double> losses;
    for (const size_t i : probes) losses.push_back(of_probes[i][medians.size()]);
    const auto middle = losses.begin() + std::ssize(losses) / 2;
    std::nth_element(losses.begin(), middle, losses.end());
    medians.push_back(*middle);
  }
}

// The probes that choices take, if each is better than it looks, as it looks, or worse; with all heads and with some left out.
std::set<size_t> worth_a_look(const MeasuredEffects& belief, std::span<const Probe> probes, uint64_t seed) {
  std::set<size_t> taken;
  for (const double left_out : {0.0, kLeftOut, kLeftOut})
    for (const double doubt : {-1.5, -1.0, -0.5, 0.0, 1.0}) {
      const Choice choice = belief.propose(doubt, left_out, RandomSource{seed, taken.size()});
      for (size_t i = 0; i < probes.size(); ++i)
        if (choice[static_cast<size_t>(probes[i].head)] == probes[i].rule) taken.insert(i);
    }
  return taken;
}

// Of the others those that change least, kReferences of them.
std::vector<size_t> references(std::span<const Change> effects, const std::set<size_t>& taken) {
  std::vector<size_t> others;
  for (size_t i = 0; i < effects.size(); ++i)
    if (!taken.contains(i)) others.push_back(i);
  std::stable_sort(others.begin(), others.end(),
                   [&](size_t a, size_t b) { return std::abs(effects[a].mean) < std::abs(effects[b].mean); });
  others.resize(std::min(others.size(), kReferences));
  return others;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value / static_cast<double>(values.size());
  return sum;
}

// [head, alpha, beta] of each head that differs.
OrderedJson changes_json(const SearchProblem& problem, const Choice& from, const Choice& to) {
  OrderedJson changes = OrderedJson::array();
  for (size_t head = 0; head < from.size(); ++head) {
    const SpanRule& rule = problem.rules[static_cast<size_t>(to[head])];
    if (to[head] != from[head]) changes.push_back({head, rule.alpha, rule.beta});
  }
  return changes;
}

OrderedJson probes_json(const SearchProblem& problem, std::span<const Probe> probes, std::span<const Change> effects) {
  OrderedJson json = OrderedJson::array();
  for (size_t i = 0; i < probes.size(); ++i) {
    const SpanRule& rule = problem.rules[static_cast<size_t>(probes[i].rule)];
    json.push_back({probes[i].head, rule.alpha, rule.beta, effects[i].mean, effects[i].error});
  }
  return json;
}

// Null also where they do not fit: whole passes lose the same.
std::unique_ptr<LayerInputs> layer_inputs(const Model& model, int64_t n_tokens) {
  try {
    return model.make_layer_inputs(n_tokens);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kOutOfMemory) throw;
    return nullptr;
  }
}

std::vector<double> losses_from(const OrderedJson& json, const std::filesystem::path& file, size_t least, size_t most) {
  try {
    auto losses = json.at("losses").get<std::vector<double>>();
    if (losses.size() >= least && losses.size() <= most) return losses;
    throw Error::bad_file(file, "found ", losses.size(), " losses, wanted ", least, " to ", most);
  } catch (const OrderedJson::exception&) {
    throw Error::bad_file(file, "found no losses of a refinement");
  }
}

}  // namespace

RefineStage::Losses RefineStage::losses_of(const SpanPlan& plan, std::span<const RefineSample> samples) {
  Losses losses;
  for (const RefineSample& sample : samples) losses.push_back(refine_loss(engine_, options_, plan, sample));
  return losses;
}

void RefineStage::measure_probes(const SearchProblem& problem, const Choice& now, std::span<const Probe> probes,
                                 std::span<const size_t> wanted, std::span<const RefineSample> samples,
                                 const std::string& folder, std::vector<Losses>& losses) {
  const int64_t heads_per_layer = problem.n_heads() / problem.shape.n_layers;
  int64_t done = 0;
  for (const RefineSample& sample : samples) {
    std::string id = sample.sample->id;
    std::replace(id.begin(), id.end(), '/', '-');
    const std::string file = folder + "/" + id + ".json";
    if (!run_.has(file)) {
      const std::unique_ptr<LayerInputs> inputs = layer_inputs(engine_.model(), sample.sample->length);
      if (inputs != nullptr) refine_loss(engine_, options_, plan_of(problem, now), sample, inputs.get());
      Losses measured;
      for (const size_t i : wanted) {
        const Probe& probe = probes[i];
        Choice changed = now;
        changed[static_cast<size_t>(probe.head)] = probe.rule;
        const int64_t first_layer = inputs == nullptr ? 0 : probe.head / heads_per_layer;
        measured.push_back(refine_loss(engine_, options_, plan_of(problem, changed), sample,
                                       first_layer == 0 ? nullptr : inputs.get(), first_layer));
        progress_.update(done + std::ssize(measured));
      }
      run_.write_json(file, {{"losses", measured}});
    }
    const Losses measured = losses_from(run_.read_json(file), run_.path(file), wanted.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) losses[wanted[i]].push_back(measured[i]);
    progress_.update(done += std::ssize(wanted));
  }
}

RefineStage::Losses RefineStage::measure_choice(const SpanPlan& plan, const Losses& best, OrderedJson& entry,
                                                const std::function<void()>& save) {
  Losses losses = entry["losses"].get<Losses>();
  const auto clearly_worse = [&] {
    if (best.empty() || losses.empty() || std::ssize(losses) % kRefineBlock != 0) return false;
    const Change change = paired_change(best, losses);
    return change.mean > change.error;
  };
  while (losses.size() < choosing_.size() && !clearly_worse()) {
    losses.push_back(refine_loss(engine_, options_, plan, choosing_[losses.size()]));
    if (std::ssize(losses) % kRefineBlock != 0 && losses.size() != choosing_.size()) continue;
    entry["losses"] = losses;
    save();
  }
  return losses;
}

Choice RefineStage::round(const SearchProblem& problem, const ChoiceTables& tables, const Choice& now, int64_t index) {
  const std::string name = density_name(problem.density), folder = "refine/" + name + "/round-" + std::to_string(index),
                    file = folder + "/choices.json",
                    of_round = "the plan of " + name + ", round " + std::to_string(index) + " of " +
                               std::to_string(options_.refine);
  const std::vector<Probe> probes = probes_around(tables, now);
  const auto n = static_cast<size_t>(options_.refine_samples), begin = static_cast<size_t>(index - 1) * n;
  if (begin >= probing_.size() || probes.empty()) return now;
  const auto samples = std::span<const RefineSample>(probing_).subspan(begin, std::min(n, probing_.size() - begin));

  // All probes on the first samples, then those that a choice might take on the others.
  std::vector<Losses> alone(probes.size());
  Losses reference;
  std::vector<Change> effects;
  const auto measure_heads = [&](std::span<const size_t> wanted, std::span<const size_t> of_reference,
                                 std::span<const RefineSample> on, const char* what) {
    progress_.start(what + of_round, std::ssize(on) * std::ssize(wanted));
    measure_probes(problem, now, probes, wanted, on, folder, alone);
    progress_.finish();
    add_medians(alone, of_reference, reference);
    effects.clear();
    for (const Losses& losses : alone) effects.push_back(paired_change(reference, losses));
    return MeasuredEffects(tables, now, probes, effects);
  };
  const size_t n_first = (samples.size() + 2) / 3;
  std::vector<size_t> wanted(probes.size());
  std::iota(wanted.begin(), wanted.end(), size_t{0});
  MeasuredEffects belief = measure_heads(wanted, wanted, samples.first(n_first), "measuring the heads of ");
  if (const std::set<size_t> taken = worth_a_look(belief, probes, options_.seed);
      n_first < samples.size() && !taken.empty()) {
    const std::vector<size_t> others = references(effects, taken);
    wanted.assign(taken.begin(), taken.end());
    wanted.insert(wanted.end(), others.begin(), others.end());
    belief = measure_heads(wanted, others.empty() ? wanted : others, samples.subspan(n_first),
                           "measuring the likely heads of ");
  }

  OrderedJson document = run_.has(file) ? run_.read_json(file) : OrderedJson{{"choices", OrderedJson::array()}};
  size_t n_measured = 0;
  const auto measure = [&](const Choice& choice, const Losses& best) {
    OrderedJson& entry = document["choices"][n_measured++];
    const OrderedJson changes = changes_json(problem, now, choice);
    if (entry.is_null()) entry = {{"changes", changes}, {"losses", Losses()}};
    if (!entry.contains("changes") || entry["changes"] != changes)
      throw Error::bad_file(run_.path(file), "found other choices than those that follow from the heads' losses");
    losses_from(entry, run_.path(file), 0, choosing_.size());
    return measure_choice(plan_of(problem, choice), best, entry, [&] { run_.write_json(file, document); });
  };
  progress_.start("measuring choices for " + of_round, kChoices);
  const Losses of_now = measure(now, {});
  Choice best = now;
  Losses of_best = of_now;
  std::set<Choice> tried = {now};
  OrderedJson summary = OrderedJson::array();
  for (int64_t i = 0; i < kChoices; ++i) {
    const double doubt = kDoubts[i % std::ssize(kDoubts)], left_out = i < std::ssize(kDoubts) ? 0 : kLeftOut;
    const Choice choice = belief.propose(doubt, left_out,
                                         RandomSource{options_.seed, std::bit_cast<uint64_t>(problem.density),
                                                      static_cast<uint64_t>(index), static_cast<uint64_t>(i)});
    if (tried.insert(choice).second) {
      Losses losses = measure(choice, of_best);
      const Change change = paired_change(of_now, losses), to_best = paired_change(of_best, losses);
      const bool taken = losses.size() == choosing_.size() && to_best.mean < -kEnough * to_best.error;
      summary.push_back({{"doubt", doubt},
                         {"left_out", left_out},
                         {"n_changes", changes_json(problem, now, choice).size()},
                         {"n_samples", losses.size()},
                         {"expected", belief.expected(choice)},
                         {"change", change.mean},
                         {"error", change.error},
                         {"taken", taken}});
      belief.learn(choice, change);
      if (taken) best = choice, of_best = std::move(losses);
    }
    progress_.update(i + 1);
  }
  progress_.finish();
  run_.write_json(folder + "/summary.json", {{"n_samples", std::ssize(samples)},
                                             {"loss", mean_of(of_now)},
                                             {"probes", probes_json(problem, probes, effects)},
                                             {"choices", summary}});
  return best;
}

std::optional<SpanPlan> RefineStage::refine(const SearchProblem& problem, std::span<const NamedPlan> candidates) {
  const std::string name = density_name(problem.density), file = "refine/" + name + ".json";
  if (probing_.empty()) {
    const auto draw = [&](const char* role, int64_t n) {
      return draw_refine_samples(engine_, run_, options_, samples_, profiles_, role, n, progress_);
    };
    probing_ = draw("refine", options_.refine * options_.refine_samples);
    choosing_ = draw("choose", 2 * options_.refine_samples);
    held_out_ = draw("check", options_.refine_samples);
  }
  if (probing_.empty() || choosing_.empty() || held_out_.empty()) return std::nullopt;
  OrderedJson document = run_.has(file) ? run_.read_json(file) : OrderedJson{{"density", problem.density}};
  const auto measured = [&](const char* what, const std::string& which, const SpanPlan& plan,
                            std::span<const RefineSample> samples) {
    OrderedJson& losses = document[what][which];
    if (losses.is_null()) {
      losses = {{"losses", losses_of(plan, samples)}};
      run_.write_json(file, document);
    }
    return losses_from(losses, run_.path(file), samples.size(), samples.size());
  };
  const ChoiceTables tables = choice_tables(problem);
  const NamedPlan* start = nullptr;
  double before = kNoLimit;
  for (const NamedPlan& candidate : candidates) {
    if (candidate.baseline || !tables.within_upper_bounds(choice_of(problem, candidate.plan))) continue;
    const double loss = mean_of(measured("starts", candidate.name, candidate.plan, choosing_));
    if (loss < before) start = &candidate, before = loss;
  }
  POLYSPAN_CHECK(start != nullptr);
  const Choice first = choice_of(problem, start->plan);
  Choice choice = first;
  for (int64_t i = 1; i <= options_.refine; ++i) {
    Choice next = round(problem, tables, choice, i);
    if (next == choice) break;
    choice = std::move(next);
  }
  SpanPlan end = plan_of(problem, choice);
  const Change change = paired_change(measured("held_out", "before", start->plan, held_out_),
                                      measured("held_out", "after", end, held_out_));
  std::ostringstream line;
  line.precision(3);
  line << "refined " << start->name << " of " << name << ": " << changes_json(problem, first, choice).size()
       << " heads changed; the loss of held-out samples by " << change.mean << " +- " << change.error;
  run_.log(line.str());
  if (change.mean >= 0) return std::nullopt;
  return end;
}

}  // namespace polyspan
