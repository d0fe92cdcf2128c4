// moa/search.h: from the loss that each head's spans cost to a plan: one rule a head, the least loss within a density.
// Source: MoA (arXiv 2406.14909) section 4.3; the project's conventions (per KV head, extension lengths, both bounds).
//
// One binary x[head, rule]; sum over rules = 1; at every bounded length n
//   min_fill * density * KV tokens(dense, n) <= KV tokens kept(n) <= density * KV tokens(dense, n),   sink included.
// A head is a KV head, or a query head (per_query_head): then a KV head keeps the longest span of its group, and
// density counts that. A lower bound that no plan within the upper ones reaches is dropped. Solved with CBC
// (moa/choice_solver.h): one thread, limits on nodes and gap but none on time, so the same problem gives the same plan.
// 1,024 heads x 674 rules x 4 lengths take 0.9 s a solve and 30 s a front of 4 curves, 90 heads 0.06 s and 3 s (one core
// of a 2-core server, bench/search_bench.cpp). A rule for each query head is far slower: 3.4 s and 52 s for 270 heads in
// 90 groups.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/progress.h"
#include "moa/choice_solver.h"
#include "plan/span_plan.h"

namespace polyspan {

// What spans cost at one length. A curve of an extension length was measured at another one (source_length) and is read
// at the same *relative* span: loss(span) = curve(span * source_length / length).
struct LossCurve {
  int64_t length = 0;
  int64_t source_length = 0;   // == length unless this is an extension
  std::vector<int64_t> spans;  // ascending, at source_length; the last one may be < source_length (dense costs 0)
  std::vector<double> loss;    // [n_heads][spans.size()]: head = layer * heads a layer + index
  // Loss of `head` at `span` tokens of `length`: that of the first span below it, linear between the measured spans and
  // from the last of them to the dense one, 0 where span >= length.
  double at(int64_t head, double span) const;
};

struct SearchProblem {
  HeadShape shape;
  bool per_query_head = false;
  int64_t n_sink_tokens = kDefaultSinkTokens;
  std::vector<LossCurve> curves;         // one a length that enters the objective (profile and extension lengths)
  std::vector<int64_t> bounded_lengths;  // where the density is bounded
  std::vector<SpanRule> rules;           // see make_rules
  double density = 0.5;                  // in (0, 1]
  double min_fill = 0.9;                 // the lower bound, as a share of the upper one
  double gap = 1e-3;                     // relative optimality gap that ends the solver
  int64_t n_heads() const { return shape.n_layers * (per_query_head ? shape.n_heads : shape.n_kv_heads); }
};

// alpha: 0, +-step, ... within [-shortest, longest profile length] and a few short windows; beta: 0, 1/beta_parts,
// ..., 1. Dropped: rules whose span exceeds the length at the largest profile or extension length (they could not be
// told from dense), is not positive at the smallest, and rules that give the same spans at every length as another.
struct RuleOptions {
  int64_t alpha_step = 0;  // 0: from the lengths (1,024 tokens for 2k-8k, finer for shorter ones)
  int64_t beta_parts = 8;
};
std::vector<SpanRule> make_rules(const std::vector<int64_t>& profile_lengths,
                                 const std::vector<int64_t>& extension_lengths, const RuleOptions& options = {});

struct Candidate {
  SpanPlan plan;
  std::vector<double> losses;     // of each curve
  std::vector<double> densities;  // at each bounded length
  std::string origin;             // what found it: "sum", "front: length 4096, others at step 2", ...
};

// The least weighted sum of the curves' losses, within problem.gap unless the solver runs out of nodes. weights: one a
// curve, none negative. Throws Error (kBadInput) naming the smallest density that the rules can reach at the bounded
// lengths, where the asked one is below it.
Candidate minimise(const SearchProblem& problem, const std::vector<double>& weights);

// Throws as minimise() does where the density is below what the rules can reach; the curves' losses are not looked at.
void check_reachable(const SearchProblem& problem);

// The problem in plain numbers; a choice holds an index into problem.rules for each head.
ChoiceTables choice_tables(const SearchProblem& problem);
SpanPlan plan_of(const SearchProblem& problem, const Choice& choice);
// REQUIRES: each rule of the plan is one of the problem's.
Choice choice_of(const SearchProblem& problem, const SpanPlan& plan);

// The Pareto front over the curves by epsilon-constraint: each curve's loss in turn is the objective, the others
// bounded *together* on a grid of `steps` between their least and their largest losses on the front's corners: curves *
// steps solves, not curves * steps^(curves - 1). Each adds the best plan found within the bounds and the best one for
// weights that price them (ChoiceSolver::limited). Dominated and equal plans are dropped. The plan of minimise() with
// equal weights stands first (or one that beats it, within the gap), then they are ordered by the first curve's loss.
std::vector<Candidate> pareto_front(const SearchProblem& problem, int64_t steps, Progress& progress = no_progress());

// The baseline of two values: each KV head is dense or keeps sink + `window` tokens (the shape of DuoAttention, arXiv
// 2410.10819), chosen from the same curves under the same density bound (upper bound only). Always a plan for KV heads:
// with per_query_head the losses of a group are added up.
Candidate two_valued(const SearchProblem& problem, int64_t window = 256);

}  // namespace polyspan
